"""Quality of responses: metrics, checks, judges, people, comparisons, leaks."""


def install() -> None:
    """Register the validation of `checks` and the parts of answers with the core; a second call changes nothing."""
    from instruct_lit.core.data.example import EXTRA_FIELDS
    from instruct_lit.core.generation.responses import FINAL_TEXT
    from instruct_lit.evaluation.answer_parts import final_text
    from instruct_lit.evaluation.checks import FIELD, check_record

    EXTRA_FIELDS[FIELD], FINAL_TEXT[0] = check_record, final_text
