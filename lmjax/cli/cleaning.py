"""The table of `lmjax clean`: what each rule took and changed."""

from rich.console import Console
from rich.table import Table

from lmjax.data.clean.clean import Cleaned

_MANY = 0.5  # of the documents, taken by a rule that is for English


def show(cleaned: Cleaned) -> None:
    """Print what was read, what each rule took and changed, and what stays."""
    console = Console(highlight=False, soft_wrap=True, width=200)
    tally = cleaned.tally
    table = Table("rule", "documents", "share", "bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    whole = max(tally.num_documents, 1)
    rows = {"read": (tally.num_documents, tally.num_bytes)}
    taken = {k: (v["documents"], v["bytes"]) for k, v in tally.taken.items()}
    rows |= dict(sorted(taken.items(), key=lambda item: -item[1][0]))
    rows["kept"] = cleaned.num_documents, cleaned.num_bytes
    for name, (documents, size) in rows.items():
        share = f"{documents / whole:.1%}"
        table.add_row(name, f"{documents:,}", share, f"{size:,}")
    console.print(table)
    if tally.changed:
        changes = Table("changed", "documents", "times")
        for name, noted in tally.changed.items():
            changes.add_row(name, f"{noted['documents']:,}", f"{noted['times']:,}")
        console.print(changes)
    if cleaned.held_out is not None:
        held_out = cleaned.held_out
        console.print(
            f"held out: {held_out.num_texts:,} texts with {len(held_out.hashes):,} "
            f"n-grams of {cleaned.settings.ngram} words; {held_out.num_short:,} are "
            "shorter and were not looked for"
        )
    if cleaned.other_splits:
        names = ", ".join(cleaned.other_splits)
        console.print(f"not read: the files of {names} in the input directory")
    if taken.get("min_stop_words", (0, 0))[0] > _MANY * whole:
        console.print(
            "min_stop_words is for English: --limit=min_stop_words=off for others"
        )
