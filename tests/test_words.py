"""Words of any script."""

from instruct_lit.words import WORD, words


def test_characters_are_words_where_a_script_has_no_spaces() -> None:
    assert words("I am here, 我在这里!") == ["I", "am", "here,", "我", "在", "这", "里", "!"]
    assert WORD.findall("a_b, 2² ½ 日本の हिन्दी!") == ["a", "b", "2²", "½", "日", "本", "の", "हिन्दी"]
