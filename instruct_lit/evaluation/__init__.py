"""Quality of responses: metrics, checks, judges, people, comparisons, leaks."""


def install() -> None:
    """Register the validation of `checks` with the core; a second call changes nothing."""
    from instruct_lit.core.data.example import EXTRA_FIELDS
    from instruct_lit.evaluation.checks import FIELD, check_record

    EXTRA_FIELDS[FIELD] = check_record
