"""What makes the same numbers come sooner; without this folder the core computes them plainly."""


def install() -> None:
    """Register attention kernels, tried in this order, and the decode loop; a second call changes nothing.

    torch prefers cuDNN's attention on Hopper and Blackwell (from 2.11 on), which needs up to a second to plan each new
    shape of its inputs, such as that of every token of an answer and of every padded batch; its others need no plan.
    """
    import torch

    from instruct_lit.accel.attention_decode import attend_decode
    from instruct_lit.accel.attention_products import attend_documents, attend_rows
    from instruct_lit.accel.attention_varlen import attend_varlen
    from instruct_lit.accel.decode_loop import decode_loop
    from instruct_lit.core.generation.engine import DECODE_LOOPS
    from instruct_lit.core.model.attention import KERNELS

    torch.backends.cuda.enable_cudnn_sdp(False)
    KERNELS[:] = [attend_decode, attend_rows, attend_varlen, attend_documents]
    DECODE_LOOPS[:] = [decode_loop]
