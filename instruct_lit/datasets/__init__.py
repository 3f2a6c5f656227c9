"""Data beyond one file of JSON records: formats, conversations, mixtures, streams, filters, near-duplicates."""


def install() -> None:
    """Register file formats, conversations and groupings with the core; a second call changes nothing."""
    from instruct_lit.core.data.batching import GROUPINGS
    from instruct_lit.core.data.encode import LAST_TURNS
    from instruct_lit.core.data.example import EXTRA_FIELDS, FORMS
    from instruct_lit.core.data.records import READERS
    from instruct_lit.core.data.template import AS_TEXTS
    from instruct_lit.datasets import conversations, file_formats, grouping, record_forms
    from instruct_lit.datasets.conversation_texts import as_texts, last_turns

    READERS.update(file_formats.READERS)
    AS_TEXTS[:], LAST_TURNS[:] = [as_texts], [last_turns]
    EXTRA_FIELDS.update(record_forms.EXTRA_FIELDS)
    FORMS.update({**conversations.FORMS, **record_forms.FORMS})
    GROUPINGS.update({"length": grouping.similar_lengths, "best_fit": grouping.best_fit_decreasing})
