"""The systems that fine-tune: ours, the plain loop, the book's own code, TRL, litgpt.

Each takes its name and the options of `benchmarks.training`, trains the same records with the same model shape (random
weights), batch size and AdamW, and returns its figures. A name tells layout and precision: `ours packed+prefix bf16`.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks import common, matrix

REFERENCE, CHECKOUT = "chapter 7", "chapter 7 checkout"
TRL = ["trl fp32", "trl fp32 packed", "trl bf16", "trl bf16 packed", "trl bf16 wrapped"]
TRL_LORA = [f"trl bf16{layout} lora{frozen}" for layout in ("", " packed", " wrapped") for frozen in ("", " frozen")]
TRL_QLORA = ["trl bf16 qlora", "trl bf16 packed qlora", "trl bf16 wrapped qlora"]
UNSLOTH = ["unsloth bf16", "unsloth bf16 lora"]
LITGPT = ["litgpt fp32", "litgpt bf16"]
LR, WEIGHT_DECAY = 5e-5, 0.1


def measure(name: str, args: Namespace) -> dict[str, Any]:
    """Train with the named system and return its figures."""
    if name == CHECKOUT:
        return chapter_7_checkout(args)
    functions = {"chapter": chapter_7, "trl": trl, "unsloth": trl, "litgpt": litgpt, "ours": ours}
    return functions[name.split()[0]](name, args)


def ours(name: str, args: Namespace) -> dict[str, Any]:
    """What `python -m instruct_lit.train` runs, without validation, checkpoints and answers.

    `lora` and `qlora` are adapters, `frozen` model.dtype=bfloat16; on a GPU `compiled` is compile=true, `liger`
    model.liger=true, `eager` cuda_graphs=false.
    """
    import torch
    from hydra import compose, initialize_config_dir
    from lightning import Callback, seed_everything

    from instruct_lit.accel.hardware import keep_freed_memory
    from instruct_lit.accel.throughput import Throughput
    from instruct_lit.config import model_builders as build
    from instruct_lit.config.check_commands import check_command
    from instruct_lit.config.compose import CONF, register
    from instruct_lit.config.data_builders import data_of
    from instruct_lit.config.run_builders import trainer_of, tuner_of

    memory, clock = common.Memory(args.device), common.Clock(args.warm_up, args.steps, args.device)
    _, batching, precision, *more = name.split()
    layout, _, prefix = batching.partition("+")

    class Tick(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        register("train")
        config = compose(
            "train",
            [
                *_model_overrides(args.model), f"adapter={_adapter_of(name)}", "verify=false",
                *(["model.liger=true"] if "liger" in more else []), f"model.dtype={'bfloat16' if 'frozen' in more else 'auto'}",
                "data=files", f"data.path={args.data}", "data.split=book", f"data.batch_size={args.batch_size}",
                f"batching={layout}", f"batching.shared_prefix={bool(prefix)}".lower(),
                f"optimizer.lr={LR}", f"optimizer.weight_decay={WEIGHT_DECAY}", "scheduler=constant",
                f"paths.cache={folder}", "~callbacks", "logger=none",
                f"trainer.precision={'bf16-mixed' if precision == 'bf16' else '32-true'}",
                f"trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}", "trainer.max_epochs=100",
                f"trainer.max_steps={args.warm_up + args.steps}", "trainer.limit_val_batches=0",
                "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false",
                f"trainer.default_root_dir={folder}", f"compile={'compiled' in more}".lower(),
                f"cuda_graphs={'false' if 'eager' in more else 'null'}",
            ],
        )  # fmt: skip
        check_command("train", config)
        keep_freed_memory()
        seed_everything(config.seed, workers=True, verbose=False)
        trainer = trainer_of(config, [Throughput(), Tick()])
        model = build.model_of(config)
        build.adapt(config, model)
        tokenizer, template = build.language_of(config)
        data = data_of(config, template, tokenizer, model.config.context_length)
        trainer.fit(tuner_of(config, model), data)
    return _figures(args, clock, memory, _per_step(common.N_TRAIN, args.batch_size), torch.__version__)


def _model_overrides(model: str) -> list[str]:
    """The model group of a configuration, with random weights."""
    folder = common.folder_of(model)
    chosen = [f"model={model}", "model.path=null"] if folder is None else ["model=hf", f"model.path={folder}"]
    return [*chosen, "model.pretrained=false"]


def _adapter_of(name: str) -> str:
    return next((kind for kind in ("qlora", "lora") if kind in name.split()), "none")


def _per_step(n_rows: int, batch_size: int) -> float:
    """Examples in an average batch of an epoch, whose last one may be smaller."""
    return common.N_TRAIN / math.ceil(n_rows / batch_size)


def chapter_7(name: str, args: Namespace) -> dict[str, Any]:
    """The plain loop of `benchmarks.reference`."""
    import torch

    from benchmarks import reference
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    memory, clock = common.Memory(args.device), common.Clock(args.warm_up, args.steps, args.device)
    torch.manual_seed(123)
    records = common.records_of(args.data)
    texts: Any = GPT2Tokenizer().encode_batch([common.alpaca_prompt(r) + r["output"] for r in records])
    loader: Any = torch.utils.data.DataLoader(
        texts, args.batch_size, shuffle=True, drop_last=True, collate_fn=reference.collate
    )
    model = reference.PlainGPT(*common.shape_of(args.model)).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    for inputs, targets in common.cycle(loader):
        reference.train_step(model, optimizer, inputs.to(args.device), targets.to(args.device))
        clock.tick()
        if clock.n_ticks == clock.last:
            break
    return _figures(args, clock, memory, args.batch_size, torch.__version__)


def chapter_7_checkout(args: Namespace) -> dict[str, Any]:
    """The book's own loop, loader and model."""
    import torch

    from benchmarks import checkout

    clock = common.Clock(args.warm_up, args.steps, args.device)
    memory = checkout.train(args.ch07, args.data, args.model, args.batch_size, clock)
    return _figures(args, clock, memory, args.batch_size, torch.__version__)


def trl(name: str, args: Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer on random weights, the prompt masked.

    Packed rows have together room for a batch of the others: of whole documents (`packed`, TRL's default), or of text
    cut through documents that see each other (`wrapped`). `compiled` is torch.compile, `liger` its kernels (on a GPU),
    `lora` a rank of 16 for every linear layer, on weights that are held in bf16 with `frozen` and in 4 bits with `qlora`.
    `unsloth` is its model in this trainer.
    """
    unsloth: Any = importlib.import_module("unsloth") if name.startswith("unsloth") else None  # changes what follows
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer, __version__

    memory, clock = common.Memory(args.device), common.Clock(args.warm_up, args.steps, args.device)
    half, four_bits = unsloth or "frozen" in name, _adapter_of(name) == "qlora"
    model, tokenizer = _hf_model(args.model, torch.bfloat16 if half or four_bits else torch.float32, empty=four_bits)
    if four_bits:
        from instruct_lit.hf.files import drawn_in_four_bits

        model = drawn_in_four_bits(model, torch.device(args.device))
    if unsloth is not None:
        model = _unsloth_model(unsloth, model, lora="lora" in name)
    records = common.records_of(args.data)
    rows = [{"prompt": common.alpaca_prompt(r), "completion": r["output"]} for r in records]
    adapter = None
    if _adapter_of(name) != "none" and unsloth is None:
        from peft import LoraConfig

        adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    packing = "bfd" if "packed" in name else "wrapped" if "wrapped" in name else None
    need = matrix.need_of(args.data, args.model, args.batch_size)
    n_tokens = args.batch_size * 64 * math.ceil(need.n_tokens / 64)
    width = min(1024, n_tokens)
    n_packed = n_tokens // width

    class Tick(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, per_device_train_batch_size=n_packed if packing else args.batch_size,
            max_steps=args.warm_up + args.steps, max_length=width if packing else 1024,
            packing=packing is not None, packing_strategy=packing or "bfd", bf16="bf16" in name,
            use_cpu=args.device == "cpu", learning_rate=LR, weight_decay=WEIGHT_DECAY, report_to=[], save_strategy="no",
            logging_steps=10**6, disable_tqdm=True, gradient_checkpointing=False,
            dataloader_pin_memory=args.device == "cuda", torch_compile="compiled" in name,
            use_liger_kernel="liger" in name,
        )  # fmt: skip
        trainer = SFTTrainer(
            model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
            callbacks=[Tick()], peft_config=adapter,
        )  # fmt: skip
        n_rows = len(trainer.train_dataset)
        trainer.train()
    per_step = _per_step(n_rows, n_packed if packing else args.batch_size)
    return _figures(args, clock, memory, per_step, __version__)


def litgpt(name: str, args: Namespace) -> dict[str, Any]:
    """The step of litgpt's `finetune_full` with its model, collate function and loss; positions are rotary there."""
    from importlib.metadata import version

    import torch
    from lightning import Fabric
    from litgpt import GPT, Config
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.utils import chunked_cross_entropy

    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    memory, clock = common.Memory(args.device), common.Clock(args.warm_up, args.steps, args.device)
    n_layers, n_heads, d_model = common.shape_of(args.model)
    fabric = Fabric(accelerator=args.device, devices=1, precision="bf16-mixed" if name.endswith("bf16") else "32-true")
    shape = Config(
        n_layer=n_layers, n_head=n_heads, n_embd=d_model, vocab_size=50257, padded_vocab_size=50257, block_size=1024,
        parallel_residual=False, gelu_approximate="tanh",
    )  # fmt: skip
    model: Any = fabric.setup(GPT(shape))
    optimizer: Any = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY))
    tokenizer = GPT2Tokenizer()
    rows: Any = []
    for record in common.records_of(args.data):
        prompt, answer = tokenizer.encode(common.alpaca_prompt(record)), tokenizer.encode(record["output"])
        ids = torch.tensor([*prompt, *answer, tokenizer.eot_id])
        labels = torch.where(torch.arange(len(ids)) < len(prompt), -100, ids)
        counts = {"raw": len(answer), "raw_plus_prompt_template": len(ids)}
        rows.append({"input_ids": ids, "labels": labels, "token_counts": counts})
    model.max_seq_length = max(len(row["input_ids"]) for row in rows)
    loader: Any = torch.utils.data.DataLoader(
        rows, args.batch_size, shuffle=True, drop_last=True, collate_fn=get_sft_collate_fn(pad_id=tokenizer.eot_id)
    )
    for batch in common.cycle(fabric.setup_dataloaders(loader)):
        logits = model(batch["input_ids"])
        fabric.backward(chunked_cross_entropy(logits[..., :-1, :], batch["labels"][..., 1:]))
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        if clock.n_ticks == clock.last:
            break
    return _figures(args, clock, memory, args.batch_size, version("litgpt"))


def _figures(
    args: Namespace, clock: common.Clock, memory: common.Memory, examples_per_step: float, version: str
) -> dict[str, Any]:
    return {"examples_per_s": args.steps * examples_per_step / clock.seconds, **memory.figures(), "version": version}


def _hf_model(model: str, dtype: Any, empty: bool = False) -> tuple[Any, Any]:
    """A model of transformers with random weights, or without values, and its tokenizer."""
    if (folder := common.folder_of(model)) is not None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        config = AutoConfig.from_pretrained(folder)  # nosec B615
        with torch.device("meta" if empty else "cpu"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype), AutoTokenizer.from_pretrained(folder)  # nosec B615
    from transformers import GPT2Config, GPT2LMHeadModel

    n_layers, n_heads, d_model = common.shape_of(model)
    shape = GPT2Config(
        n_layer=n_layers, n_head=n_heads, n_embd=d_model, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, dtype=dtype
    )
    return GPT2LMHeadModel(shape).to(dtype), gpt2_tokenizer()


def _unsloth_model(unsloth: Any, model: Any, lora: bool) -> Any:
    """The same model as Unsloth opens it, which it does from a folder with weights alone."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        options = {"max_seq_length": 1024, "dtype": model.dtype, "load_in_4bit": False, "full_finetuning": not lora}
        model, _ = unsloth.FastLanguageModel.from_pretrained(folder, **options)
    return unsloth.FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32) if lora else model


def gpt2_tokenizer() -> Any:
    """GPT-2's tokenizer of transformers, from the vocabulary files of ours."""
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, content in GPT2Tokenizer().vocab_files().items():
            (Path(folder) / {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}[name]).write_bytes(content)
        tokenizer = GPT2TokenizerFast(f"{folder}/vocab.json", f"{folder}/merges.txt")
    tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
    return tokenizer
