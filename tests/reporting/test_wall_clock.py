"""The tables of SmolLM2's results against numbers made up here."""

from zaya_jax.reporting.tables.wall_clock import learned_table, wall_clock_table


def test_tokens_seen_add_up_over_runs():
    config = {"convert": {"batch_size": 2, "row_length": None}, "data": {"row_length": 100}}

    def line(step: int, loss: float) -> dict:
        found = {"chat/ar_loss": 0.5, "chat/draft_loss": loss, "chat/draft_accuracy_by_slot": [0.9, loss]}
        return {"stage": "convert/validation", "step": step, **found}

    other = {"stage": "convert", "step": 1, "loss": 1.0}
    table = learned_table([(config, [other, line(10, 0.4), line(20, 0.3)]), (config, [line(5, 0.2)])])
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    assert cells == [
        ["chat", "2,000", "0.500", "0.400", "0.90 0.40"],
        ["chat", "4,000", "0.500", "0.300", "0.90 0.30"],
        ["chat", "5,000", "0.500", "0.200", "0.90 0.20"],
    ]


def test_a_row_says_what_auto_chose():
    row = {
        "prompts": "addition", "temperature": 0.0, "block_size": 4, "anchors": [1, 3], "query_tokens": 12, "count": 8,
        "tokens_per_forward": 2.5, "tokens_per_second": {"plain": 10.0, "drafting": 9.0}, "ratio": 0.9, "same": 8,
        "interval": [0.8, 1.0], "auto": "autoregressive", "auto_ratio": 1.0,
    }  # fmt: skip
    cells = [cell.strip() for cell in wall_clock_table({"rows": [row]}).splitlines()[2].strip("|").split("|")]
    assert cells == [
        "addition", "0", "4, 1 3", "12", "2.50", "10.0", "9.0", "0.90x (0.80-1.00)", "AR, 1.00x", "8 of 8"
    ]  # fmt: skip
    other = {"auto": "drafter", "auto_drafter": "ngram", "auto_ratio": None}  # it was not what was timed
    assert "| ngram, not timed |" in wall_clock_table({"rows": [row | other]})
    assert "| drafts, not timed |" in wall_clock_table({"rows": [row | other | {"auto_drafter": None}]})
    assert "| ngram, 3 drafts |" in wall_clock_table({"rows": [row | {"drafter": "ngram", "anchors": []}]})
