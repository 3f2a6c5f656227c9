"""The scores of an evaluation or a comparison: tables in the terminal, and a page with the worst responses first."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.bundle import bundle_of, read_about
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import printable
from instruct_lit.evaluation.categories import lines
from instruct_lit.evaluation.forgetting import verdict
from instruct_lit.evaluation.metrics import Row, higher_is_better
from instruct_lit.reports import pages, plots
from instruct_lit.reports.metrics import interval, number, p_value
from instruct_lit.reports.tables import show, show_table

MAX_ROWS = 300
MAX_LEAKS = 5  # printed in the terminal; the file lists all


def print_scores(evaluation: Mapping[str, Any]) -> None:
    """Print means with their intervals, and the first metric and the loss by category."""
    leaks = evaluation.get("leaks")
    without = leaks["metrics_without"] if leaks and leaks["n"] else {}
    rows = [
        (name, f"{v['mean']:.3f}", interval(v), v["n"], *([f"{without[name]['mean']:.3f}"] if name in without else []))
        for name, v in lines(evaluation)
    ]
    show_table(("", "mean", "95 % interval", "n", *(["without leaks"] if without else [])), rows)


def print_leaks(leaks: Mapping[str, Any] | None) -> None:
    """Print how many evaluated examples are in the training data or close to it, and the first of them."""
    if leaks is None:
        return
    kinds = ", ".join(f"{kind} {n}" for kind, n in leak_counts(leaks).items()) or "none"
    searched = "exact, near-duplicates and 13-word overlap" if leaks["near"] else "exact and 13-word overlap"
    share = f"{leaks['n']} of {leaks['n_rows']} examples"
    show(f"leaks ({searched}): {share} are in the training data or close to it ({kinds})")
    for item in leaks["items"][:MAX_LEAKS]:
        show(f"  {item['kind']} ({item['similarity']:.2f}): {printable(item['text'])}")
    if leaks["n"] > MAX_LEAKS:
        show(f"  and {leaks['n'] - MAX_LEAKS} more, in evaluation.json")


def leak_counts(leaks: Mapping[str, Any]) -> dict[str, int]:
    """The number of leaks of each kind."""
    kinds = [item["kind"] for item in leaks["items"]]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def print_judge(judge: Mapping[str, Any]) -> None:
    """Print the judge's mean score, how many verdicts it rests on, and its agreement with other scores."""
    show(f"judge {judge['model'] or judge['name']}: {judge_line(judge)}")
    print_panel(judge, judge_line)
    agreement = judge.get("agreement", {})
    show_table(("agreement", ""), [(name, number(value) or "undefined") for name, value in agreement.items()])


def print_panel(found: Mapping[str, Any], line_of: Callable[[Mapping[str, Any]], str]) -> None:
    """Print the line of every judge of a panel, and the agreement of every two; nothing for a single judge."""
    for label, own in found.get("judges", {}).items():
        show(f"  {label}: {line_of(own)}")
    pairs = [
        (pair, *(number(v[key]) or "undefined" for key in ("spearman", "kappa_quadratic")), v["n"])
        for pair, v in found.get("panel_agreement", {}).items()
    ]
    show_table(("judges", "Spearman's rho", "quadratic kappa", "n"), pairs)


def judge_line(judge: Mapping[str, Any]) -> str:
    """A judge's mean score, and how many verdicts could not be parsed."""
    score, unparsed = judge["score"], f"{judge['n_unparsed']} of {judge['n_verdicts']} verdicts could not be parsed"
    if score is None:
        return f"not judged, {unparsed}"
    best = f"; counted as the highest, the mean would be {judge['mean_at_best']:.2f}" if judge["n_unparsed"] else ""
    return f"{score['mean']:.2f} ({interval(score, '%.2f')}); {unparsed} and count as the lowest score{best}"


def print_people(people: Mapping[str, Any]) -> None:
    """Print the rates of people's labels, the agreement between reviewers, and what predicts them, the best first."""
    show(f"people: {people['n_labels']} labels of {people['n_responses']} responses")
    rates = people["rates"].items()
    show_table(("label", "share", "95 % interval"), [(printable(n), f"{v['mean']:.3f}", interval(v)) for n, v in rates])
    shares = [(printable(s), *(f"{v['mean']:.3f}" for v in rates.values())) for s, rates in people["sources"].items()]
    show_table(("", *map(printable, people["rates"])), shares)
    pairs = [
        (printable(name), number(v["kappa"]) or "undefined", f"{v['same']['mean']:.3f}", v["n"])
        for name, v in people["agreement"].items()
    ]
    if pairs:
        show_table(("reviewers", "Cohen's kappa", "same label", "n"), pairs)
        show(f"Krippendorff's alpha {number(people['alpha']) or 'undefined'}")
        ids = ", ".join(map(str, people["disagreements"])) or "none"
        show(printable(f"different labels for the responses {ids}"))
    predictors = [(n, f"{v['mean']:+.3f}", interval(v, "%+.3f"), v["n"]) for n, v in people["predictors"].items()]
    show_table(("metric", "Spearman's rho with people", "95 % interval", "n"), predictors)


def records_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of `evaluation.json` as rows of one table."""
    if "comparison" in found:
        return [
            {"metric": name, "model": model, **value, "best_rank": rank[0], "worst_rank": rank[1]}
            for name, numbers in found["comparison"].items()
            for model, value in numbers["models"].items()
            for rank in [(numbers["ranks"] or {}).get(model, (None, None))]
        ]
    if "compare" in found:
        pairwise = found.get("pairwise") or {"win_rate": None}
        rate = pairwise["win_rate"] and {"a": None, "b": None, **pairwise["win_rate"], "p": pairwise["p"]}
        rates = {"win_rate": rate} if rate else {}
        return [{"metric": name, **value} for name, value in {**found["differences"], **rates}.items()]
    judged = {"judge": found["judge"]["score"]} if found.get("judge", {}).get("score") else {}
    return [{"metric": name.strip(), **value} for name, value in [*lines(found), *judged.items()]]


def rank_text(ranks: Mapping[str, Sequence[int]] | None, model: str) -> str:
    """The ranks that a model may have, `1` or `1 to 3`; empty where a metric has none."""
    low, high = (ranks or {}).get(model, ("", ""))
    return f"{low}" if low == high else f"{low} to {high}"


def print_ranking(found: Mapping[str, Any]) -> None:
    """Print the means and ranks of several models, and the differences of all pairs in the first metric."""
    show("\n".join(f"{label}: {source}" for label, source in found["models"].items()))
    others = f", {n} responses to others" if (n := found["n_unpaired"]) else ""
    show(f"{found['n_examples']} common examples{others}; p-values are corrected for the number of pairs (Holm)")
    rows = [
        (name, model, f"{v['mean']:.3f}", interval(v), rank_text(numbers["ranks"], model))
        for name, numbers in found["comparison"].items()
        for model, v in numbers["models"].items()
    ]
    show_table(("", "model", "mean", "95 % interval", "rank"), rows, text=("model",))
    shown = [name for name in found["comparison"] if name in (next(iter(found["comparison"])), "judge")]
    pairs = [
        (name, f"{p['a']} - {p['b']}", f"{p['mean']:+.3f}", interval(p, "%+.3f"), p_value(p["p_holm"]))
        for name in shown
        for p in found["comparison"][name]["pairs"]
    ]
    show_table(("", "difference", "mean", "95 % interval", "p (Holm)"), pairs, text=("difference",))
    if "judge" in found:
        show(f"judge {found['judge']['model'] or found['judge']['name']}, all models: {judge_line(found['judge'])}")
        print_panel(found["judge"], judge_line)


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the difference of two models in each metric, and the judge's win rates."""
    a, b = comparison["compare"]
    show(f"A {a}\nB {b}\n{comparison['n_pairs']} common examples, {comparison['n_unpaired']} unpaired responses")
    rows = [
        (name, f"{v['a']:.3f}", f"{v['b']:.3f}", f"{v['mean']:+.3f}", interval(v, "%+.3f"), p_value(v["p"]))
        for name, v in comparison["differences"].items()
    ]
    show_table(("", "A", "B", "A - B", "95 % interval", "p"), rows)
    if "pairwise" in comparison:
        show("\n".join(pairwise_lines(comparison["pairwise"])))
        print_panel(comparison["pairwise"], lambda own: pairwise_lines(own)[0])


def pairwise_lines(pairwise: Mapping[str, Any]) -> list[str]:
    """A judge's comparison in sentences."""
    unparsed = f"{pairwise['n_unparsed']} of {pairwise['n_verdicts']} verdicts could not be parsed"
    if pairwise["win_rate"] is None:
        return [f"not judged, {unparsed}"]
    rate, n = pairwise["win_rate"], pairwise["win_rate"]["n"]
    bounds = interval({**rate, **{side: rate[side] and 100 * rate[side] for side in ("low", "high")}}, "%.1f%%")
    significance = "significant" if pairwise["p"] < 0.05 else "not significant"
    ties = n - pairwise["wins"] - pairwise["losses"] - pairwise["turned"]
    shown, shown_p = pairwise["first_shown"], p_value(pairwise["p"])
    return [
        f"A wins {rate['mean']:.1%} ({bounds}) of {n}; the difference from 50 % is "
        f"{significance} (p {shown_p if shown_p[0] == '<' else f'= {shown_p}'})",
        f"length-controlled win rate {pairwise['length_controlled_win_rate']:.1%}",
        f"in both orders A {pairwise['wins']}, B {pairwise['losses']}; {pairwise['turned']} depend on the order, "
        f"{ties} are ties in at least one order",
        f"{unparsed} and count as ties"
        + (f"; the response shown first wins {shown:.0%} of those without a tie" if shown is not None else ""),
    ]


def subject(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was evaluated, as (name, text): the model with its base, its data, its template, and how it responded."""
    if evaluation["run"] is None:
        return [("responses", evaluation["responses"])]
    if evaluation["run"].startswith("endpoint/"):
        return [("model behind an endpoint", evaluation["run"].removeprefix("endpoint/"))]
    about = read_about(bundle_of(evaluation["run"]))
    data, settings = about.get("data", {}), evaluation["generation"]
    how = [f"{'sampled' if settings['temperature'] else 'greedy'}, at most {settings['max_new_tokens']} new tokens"]
    for key, default in vars(SamplingSettings()).items():
        if key not in ("max_new_tokens", "seed") and (settings.get(key) or None) != (default or None):
            how.append(f"{key}={settings[key]}")
    facts = {
        "model": evaluation["run"],
        "base model": (about.get("base") or {}).get("id"),
        "fine-tuned on": data.get("name") and f"{data['name']} (fingerprint {data.get('fingerprint')})",
        "template": about.get("template", {}).get("name"),
        "responses to": f"the {evaluation['split']} split",
        "generation": ", ".join(how),
    }
    return [(name, str(text)) for name, text in facts.items() if text]


def write_page(path: Path, evaluation: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the page of an evaluation: scores, leaks, judge, then the responses, the worst first.

    They are ordered by the judge's verdict where there is one, then by the first metric, then by the loss.
    """
    first = next(iter(evaluation["metrics"]))
    sign = -1 if higher_is_better(first) is False else 1

    def quality(row: Row) -> tuple[float, float, float]:
        value = row.get("judge", {}).get("value")
        judged = float("-inf") if value is None else value
        return judged, sign * row["scores"].get(first, float("inf")), -row.get("loss", 0.0)

    leaks, changes = evaluation.get("leaks"), evaluation.get("changes", ())
    alone = [change for change in changes if "change" not in change]  # the others have a table of their own
    by = {
        field: {value: numbers[first] for value, numbers in of.items() if first in numbers}
        for field, of in evaluation["by"].items()
    }
    pages.write_page(
        path,
        "evaluation.html.jinja",
        source=evaluation["run"] or evaluation["responses"],
        subject=subject(evaluation),
        lines=lines({**evaluation, "changes": alone, "by": {}}),
        of_categories=lines({"metrics": {first: None}, "by": evaluation["by"]})[1:],
        changes=[change for change in changes if "change" in change],
        leaks=leaks,
        leak_counts=leak_counts(leaks) if leaks else {},
        judge=evaluation.get("judge"),
        people=evaluation.get("people"),
        judge_line=judge_line(evaluation["judge"]) if "judge" in evaluation else "",
        rows=sorted(rows, key=quality)[:MAX_ROWS],
        n_rows=len(rows),
        first=first,
        categories=plots.svg(plots.category_scores(first, by), f"{first} by category") if by else None,
    )


def write_ranking(path: Path, found: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the page of several models: means and ranks, differences of all pairs, then the responses by example."""
    n = len(found["models"])
    examples = [rows[i : i + n] for i in range(0, len(rows), n)]
    pages.write_page(
        path, "ranking.html.jinja", found=found, rank_text=rank_text, rows=examples[:MAX_ROWS], n_rows=len(examples)
    )


def write_comparison(path: Path, comparison: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the page of a comparison: differences, the judge's win rates, then the responses, A's losses first.

    Without a judge those that differ come first.
    """

    def order(row: Row) -> tuple[float, bool]:
        return row.get("judge", {}).get("share", 0.0), row["response"].strip() == row["response_b"].strip()

    pairwise = comparison.get("pairwise")
    pages.write_page(
        path,
        "comparison.html.jinja",
        comparison=comparison,
        verdict=verdict,
        sentences=pairwise_lines(pairwise) if pairwise else [],
        rows=sorted(rows, key=order)[:MAX_ROWS],
        n_rows=len(rows),
    )
