"""What makes the same numbers come sooner; without this folder the core computes them plainly."""


def install() -> None:
    """Register attention kernels, tried in this order, and the decode loop; a second call changes nothing."""
    from instruct_lit.accel.attention_decode import attend_decode
    from instruct_lit.accel.attention_products import attend_documents, attend_rows
    from instruct_lit.accel.attention_varlen import attend_varlen
    from instruct_lit.accel.decode_loop import decode_loop
    from instruct_lit.core.generation.engine import DECODE_LOOPS
    from instruct_lit.core.model.attention import KERNELS

    KERNELS[:] = [attend_decode, attend_rows, attend_varlen, attend_documents]
    DECODE_LOOPS[:] = [decode_loop]
