"""The reference page comes from the schema."""

from pathlib import Path

from instruct_lit.config.reference import reference
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.options import keys_of


def test_the_reference_page_is_in_step() -> None:
    page, expected = Path(__file__).resolve().parents[2] / "docs" / "reference.md", reference()
    assert page.read_text(encoding="utf-8") == expected, (
        "run `python -m instruct_lit.config.reference > docs/reference.md`"
    )
    for schema in COMMANDS.values():
        assert all(f"`{key.name}`" in expected for key in keys_of(schema))
