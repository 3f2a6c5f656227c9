"""What a run writes at its end, tried before the first step: what can fail after hours fails in the first minute."""

import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.callbacks import WeightAveraging

from instruct_lit.config.compose import flat
from instruct_lit.config.model_builders import base_of, n_trained
from instruct_lit.config.satellites import has_satellite
from instruct_lit.core.bundle import OURS, save_bundle
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.model.pretrained import DTYPES
from instruct_lit.core.training.checkpoints import LAST, read_checkpoint
from instruct_lit.core.training.run import Run, RunHook
from instruct_lit.errors import ConfigError, InstructLitError
from instruct_lit.optional_imports import installed

# Bytes of an optimizer's moments for each trained parameter; those of others are not counted.
MOMENTS = {"adamw": 8, "AdamW": 8, "Adam": 8, "muon": 4, "adamw_8bit": 2}

UNFINISHED_S = 86_400  # a store of encoded data that nobody wrote to for so long is never finished


class Preflight(RunHook):
    """Writes an empty bundle, a row to each logger and an empty report, and checks the room on the disk."""

    def on_prepared(self, run: Run) -> None:
        if not run.trainer.is_global_zero:
            return
        for name in (".bundle.*", ".preflight.*"):  # temporary folders of a killed run, as large as the model
            for left in run.run_dir.glob(name):
                shutil.rmtree(left, ignore_errors=True)
        remove_unfinished(Path(cast(Any, run.parts).config.paths.cache) / "encoded")
        check_room(run)
        with tempfile.TemporaryDirectory(prefix=".preflight.", dir=run.run_dir) as folder:
            for what, attempt in (("the bundle", _bundle), ("the loggers", _loggers), ("the report", _report)):
                try:
                    attempt(run, Path(folder))
                except InstructLitError:
                    raise
                except Exception as error:  # libraries fail in any way
                    message = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
                    raise ConfigError(
                        f"before training: {what} of this run cannot be written and opened again ({message}); nothing "
                        "has been trained yet"
                    ) from error


def remove_unfinished(folder: Path) -> None:
    """Remove the stores that killed runs left there: those under a temporary name to which nobody writes any more."""
    for store in folder.glob("*.*/"):
        with suppress(OSError):  # another run ends it at this moment
            if max(path.stat().st_mtime for path in (store, *store.iterdir())) < time.time() - UNFINISHED_S:
                shutil.rmtree(store)


def check_room(run: Run) -> None:
    """Raise ConfigError if the disk has not the room for what lies side by side: checkpoints, and one file in writing.

    Of a run that resumes in its own folder the checkpoints are there already.
    """
    config, trained, trainer = cast(Any, run.parts).config, n_trained(run.model), cast(Any, run.trainer)
    n_averages = sum(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    per_weight = 4 * (1 + n_averages) + MOMENTS.get(config.optimizer["_target_"].rpartition(".")[2], 0)
    once = trainer.max_epochs == 1 and str(trainer.val_check_interval) == "1.0"  # a validation, and then the end
    dtype = DTYPES.get(config.bundle_dtype, run.model.base_dtype)
    kept, writing = 0, dtype.itemsize * (run.model.n_parameters if config.adapter.merge else trained)  # the bundle
    saving = trainer.checkpoint_callbacks if run.settings.fit else []
    for callback in saving:
        weights_only, top_k = getattr(callback, "save_weights_only", False), getattr(callback, "save_top_k", 1)
        size = trained * (0 if top_k == 0 else 4 if weights_only else per_weight)
        several = not once or getattr(callback, "every_n_steps", None) is not None
        kept += size * (max(top_k, 1 if weights_only else 2) if several else 1)  # whole ones with the previous one
        writing = max(writing, size if several else 0)
    there = sum(path.stat().st_size for path in (run.run_dir / LAST.parent).rglob("*") if path.is_file())
    free, n_bytes = shutil.disk_usage(run.run_dir).free, kept - min(kept, there) + writing
    if free < n_bytes:
        remedy = "make room, or choose another folder (paths.outputs=…)"
        if not all(getattr(callback, "save_weights_only", False) for callback in saving):
            remedy += "; less room is needed without a checkpoint to resume from (callbacks.last_checkpoint=null)"
        raise ConfigError(
            f"paths.outputs: {run.run_dir} has {free / 1e9:.2f} GB free, and checkpoints and bundle take "
            f"{n_bytes / 1e9:.2f} GB; {remedy}"
        )


def _bundle(run: Run, folder: Path) -> None:
    """Write a bundle without weights, and open its tokenizer, chat template and generation defaults in transformers."""
    empty, parts, sampling = folder / "bundle", cast(Any, run.parts), asdict(run.settings.sampling)
    apart = None if parts.config.adapter.merge else parts.adapter
    write = partial(apart.save_config, base=base_of(parts.config)) if apart is not None else lambda new: None
    save_bundle(empty, run.model, run.tokenizer, run.template, sampling, run.about, write)
    assert (empty / OURS).is_file()
    if not has_satellite("hf") or not installed("transformers"):
        return
    from transformers import AutoTokenizer, GenerationConfig

    from instruct_lit.hf.bundles import check_opens
    from instruct_lit.hf.model import HFModel

    if isinstance(run.model, HFModel):
        dtype = DTYPES.get(parts.config.bundle_dtype, run.model.base_dtype)
        check_opens(folder / "config" if apart is None else empty, run.model, dtype, apart)
    GenerationConfig.from_pretrained(empty)  # nosec B615 (a local folder)
    trusted = parts.config.model.get("trust_remote_code", False)  # the code of a tokenizer, which is in the bundle
    tokenizer: Any = AutoTokenizer.from_pretrained(empty, trust_remote_code=trusted)  # nosec B615
    question = "Name a colour."
    asked = [{"role": "user", "content": question}]
    found = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    ours = Encoder(run.template, run.tokenizer, run.model.config.context_length).prompt_ids(Example(question, ""))
    if found != ours:
        raise ConfigError(
            f"template={run.template.name}: transformers would render {tokenizer.decode(found)[:80]!r} where this "
            f"program renders {tokenizer.decode(ours)[:80]!r}; simplify the template"
        )


def _loggers(run: Run, folder: Path) -> None:
    if reports := has_satellite("reports"):
        from instruct_lit.reports.loggers import Csv, log_configuration
    last = -1  # step of the rows that stay
    if run.checkpoint:
        last = int(read_checkpoint(run.checkpoint)["global_step"]) if run.settings.fit else sys.maxsize
    for logger in run.trainer.loggers:
        if reports and cast(Any, run.trainer).enable_autolog_hparams:
            log_configuration(logger, flat(cast(Any, run.parts).config))
        table = logger if reports and isinstance(logger, Csv) else None
        rows = table.rows() if table else []
        logger.log_metrics({"epoch": 0.0}, step=last + 1 if run.settings.fit else 0)
        if table:
            table.save()
            table.write([row for row in rows if int(row["step"]) <= last])


def _report(run: Run, folder: Path) -> None:
    if has_satellite("reports"):
        from instruct_lit.reports.run_page import write_report

        (folder / "responses.jsonl").write_text("")
        (folder / "metrics.json").write_text("{}")
        write_report(folder, [], [])
