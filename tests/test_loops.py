"""Degenerate replies: loops of every kind are found, ordinary replies of every kind are not."""

import pytest
from actlake.analyze.text.scores import is_coherent, is_degenerate, score

SONG = """Row, row, row your boat,
Gently down the stream.
Merrily, merrily, merrily, merrily,
Life is but a dream.

Row, row, row your boat,
Gently up the creek.
If you see a little mouse,
Don't forget to squeak!

Row, row, row your boat,
Gently down the stream.
If you see a crocodile,
Don't forget to scream!"""
REFRAIN = "\n\n".join(
    f"{n} green bottles hanging on the wall,\n{n} green bottles hanging on the wall,\nAnd if one green bottle should"
    f" accidentally fall,\nThere'll be {m} green bottles hanging on the wall."
    for n, m in (("Ten", "nine"), ("Nine", "eight"), ("Eight", "seven"))
)
TABLE = """| Name | Qty | Price |
|------|-----|-------|
| Apples | 3 | $1.20 |
| Pears | 5 | $2.10 |
| Plums | 12 | $0.40 |
| Bread | 1 | $3.00 |
| Milk | 2 | $1.10 |"""
TRUTH = "| A | B | A AND B |\n|---|---|---|\n" + "\n".join(
    f"| {a} | {b} | {c} |" for a, b, c in ("TTT", "TFF", "FTF", "FFF")
)
TIMES = "\n".join(f"{i} x {j} = {i * j}" for i in range(1, 10) for j in range(1, 10))
CODE = '''Here is a function:

```python
def fibonacci(n: int) -> list[int]:
    """Return the first n Fibonacci numbers."""
    found = [0, 1]
    for i in range(2, n):
        found.append(found[i - 1] + found[i - 2])
    return found[:n]


if __name__ == "__main__":
    print(fibonacci(10))
```
'''
JSON = '{"people": [' + ", ".join(f'{{"name": "P{i}", "age": {20 + i}, "city": "Rome"}}' for i in range(6)) + "]}"
MATRIX = "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]"
LATEX = r"\[ x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}, \qquad a \neq 0 \]"
PROSE = (
    "The river rises in the hills north of the town and flows south through a broad valley before it reaches the sea. In"
    " spring the snow melts, the water is high, and small boats can go as far as the old mill. People have fished here for"
    " centuries; today most of the catch is trout, and the rules say that no more than four may be kept in a day."
)
STEPS = "\n".join(
    f"{i}. {s}"
    for i, s in enumerate(("Wash the rice.", "Boil the water.", "Add the rice.", "Stir.", "Wait.", "Serve."), 1)
)
HEALTHY = {
    "short": "Paris.",
    "yes": "Yes",
    "empty": "",
    "laugh": "Hahahahahaha!",
    "very": "No, no, no, no! That is very, very wrong.",
    "dots": "Well............. I don't know, let me think about it.",
    "prose": PROSE,
    "steps": STEPS,
    "bullets": "\n".join(
        f"- **{w}**: a kind of fruit" for w in ("Apple", "Pear", "Plum", "Fig", "Lemon", "Lime", "Mango")
    ),
    "song": SONG,
    "refrain": REFRAIN,
    "table": TABLE,
    "truth table": TRUTH,
    "times table": TIMES,
    "code": CODE,
    "json": JSON,
    "matrix": MATRIX,
    "latex": LATEX,
    "pi": "3.14159265358979323846264338327950288419716939937510",
    "third": "1/3 = 0.333333333333 (the threes go on for ever)",
    "counting": ", ".join(map(str, range(1, 101))),
    "primes": "2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47",
    "alphabet": " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "sums": "12 + 30 = 42\n42 - 7 = 35\n35 / 5 = 7\n7 * 7 = 49",
    "rule": "Title\n" + "=" * 60 + "\nThe text below the line is short but it is fine.",
    "chinese": "长江是亚洲最长的河流,发源于青藏高原,流经十一个省份,最后注入东海。它的流域养育了中国三分之一的人口。",
    "arabic": "نهر النيل هو أطول نهر في أفريقيا، وينبع من بحيرة فيكتوريا ويصب في البحر المتوسط بعد رحلة طويلة.",
    "hindi": "गंगा भारत की सबसे लंबी नदी है। यह हिमालय से निकलती है और बंगाल की खाड़ी में गिरती है। इसके किनारे कई बड़े शहर बसे हैं।",
    "thai": "แม่น้ำเจ้าพระยาเป็นแม่น้ำสายสำคัญของประเทศไทย ไหลผ่านกรุงเทพมหานครและลงสู่อ่าวไทย",
    "japanese": "富士山は日本で一番高い山です。毎年、夏には多くの人がその頂上を目指して登ります。",
    "russian": "Волга берёт начало на Валдайской возвышенности и впадает в Каспийское море.",
    "dialogue": "A: Hello.\nB: Hello. How are you?\nA: I'm fine, and you?\nB: Fine, thanks. Shall we go?\nA: Yes, let's go.",
    "refusal": "I'm sorry, but I can't help with that. If you are in danger, please call your local emergency number.",
    "url": "See https://example.org/a/b/c?x=1&y=2&z=3 for more.",
    "emphatic": "This is **very** important!!! Please read it twice!!!",
}
WRECKS = {
    "published cash": "cash-M cash-M: cash-M cash- cash-M cash-M cash: cash-M- cash-M cash-M cash-M: cash cash-M cash-M",
    "published AR": "-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR-AR",
    "one character": "a" * 200,
    "spaced characters": "a " * 100,
    "two characters": "ab" * 60,
    "word": "the " * 50,
    "word joined by commas": "yes,yes,yes,yes,yes,yes,yes,yes,yes,yes,yes,yes,yes",
    "two words": "river-bank/river-bank/river bank/river-bank, river-bank river/bank river-bank. river-bank",
    "slashes": "/foo/bar" * 20,
    "phrase": "I am here to help. " * 12,
    "long phrase": "The answer to the question is that the answer depends on the question that was asked. " * 6,
    "phrase with counters": " ".join(f"{i}. The cat sat on the mat with the hat." for i in range(1, 25)),
    "loop after a beginning": "The capital of France is Paris, a city on the Seine. " + "of the of the city " * 20,
    "words in any order": " ".join(["loop", "again", "over"][(i * i + i // 3) % 3] for i in range(60)),
    "symbols": "}{][;;##@@!!%%^^&&**(()){}{}<<>>??//\\\\||~~``;;::,,..",
    "symbols and a letter": "§§ ¤¤ a ## @@ !! %% ^^ && ** (( )) {} {} << >> ?? // ~~ ;; :: x",
    "lines": "\n".join(["##"] * 60),
    "dashes": "-" * 300,
    "new lines of one word": "\n".join(["Answer"] * 40),
    "chinese": "我是我是我是我是我是我是我是我是我是我是我是我是我是",
    "thai": "ครับ" * 30,
    "code": "print(x)\n" * 30,
    "html": "<br></br>" * 30,
    "emoji": "🎉🎉🎉🎉" * 20,
    "unspaced words": "testTest" * 20,
    "underscores": "foo_bar_" * 20,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_ordinary_replies_pass(name: str) -> None:
    assert not is_degenerate(HEALTHY[name])


@pytest.mark.parametrize("name", WRECKS)
def test_wrecks_are_found(name: str) -> None:
    assert is_degenerate(WRECKS[name])


def test_the_first_rule_stays_as_it_was_and_the_second_stands_beside() -> None:
    wreck = WRECKS["published AR"] + " cash-M cash: x"
    assert (
        is_coherent(wreck) and score(wreck, {})["coherent"] == 1.0
    )  # METHODS 18's rule sees three words and nothing odd
    assert score(wreck, {})["degenerate"] == 1.0 and score(PROSE, {}) | {"degenerate": 0.0, "coherent": 1.0} == score(
        PROSE, {}
    )


def test_it_is_quick_on_long_replies() -> None:
    import time

    started = time.perf_counter()
    for text in (PROSE * 40, "ab " * 4000, "x" * 20000):
        is_degenerate(text)
    assert time.perf_counter() - started < 5
