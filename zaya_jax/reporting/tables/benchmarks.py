"""Tables of the other benchmarks of results/bench: training, conversion, memory, bfloat16, the compilation cache."""

from zaya_jax.reporting.tables.cells import markdown


def transformers_table(one: list[dict], all_cores: list[dict]) -> str:
    """AR decoding beside transformers, with one XLA thread and with one a core: results/bench/transformers_*.json."""
    lines = []
    for row, other in zip(one, all_cores, strict=True):
        cells = [f"{row['parameters'] / 1e6:.1f}M", str(row["batch"])]
        for run in (row, other):
            times = run["milliseconds_per_token"]
            cells += [f"{times['transformers']:.2f}", f"{times['zaya_jax']:.2f}", f"{run['ratio']:.1f}"]
        lines.append(tuple(cells))
    return markdown(
        ("model", "batch", *("transformers, ms a token", "here, 1 thread", "ratio"),
         *("transformers, ms a token", "here, 2 threads", "ratio")),
        lines,
    )  # fmt: skip


def training_table(runs: list[dict]) -> str:
    """A training step beside TiDAR's, a dense model's and transformers': results of `experiments.bench.training`."""
    lines = []
    for cores, row in [(run["environment"]["cores"], row) for run in runs for row in run["training"]]:
        ours = f"{row['setting']['how']}, CPU devices: {row['setting']['devices']}"
        for side in ("tidar", "dense", "transformers"):
            lines.append(
                (
                    f"{row['parameters'] / 1e6:.1f}M", f"{row['batch']} x {row['row']}", str(cores), side, ours,
                    f"{row['milliseconds']['autoregressive']:.0f} ms", f"{row['milliseconds'][side]:.0f} ms",
                    f"{row['ratio'][side]:.2f}",
                )
            )  # fmt: skip
    return markdown(
        ("parameters", "batch", "cores", "step", "ours computed by", "our AR step", "this one", "ratio"), lines
    )


def conversions_table(rows: list[dict]) -> str:
    """Full-size conversions (`experiments.bench.convert`)."""
    lines = [
        (
            row["conversion"], "yes" if row["killed_after_s"] else "no", f"{row['peak_rss_gib']:.2f} GiB",
            f"{row['peak_anonymous_gib']:.2f} GiB", f"{row['tensors_verified']:,}",
        )
        for row in rows
    ]  # fmt: skip
    headers = ("conversion", "killed and resumed", "peak memory", "without pages of files", "tensors equal bit for bit")
    return markdown(headers, lines)


def loading_table(rows: list[dict]) -> str:
    """Loading a Hugging Face folder onto devices (`experiments.bench.loading`)."""
    lines = [
        (
            str(row["devices"]), f"{row['weights_gib']:.2f} GiB", f"{row['held_by_devices_gib']:.2f} GiB",
            f"{row['peak_over_start_gib']:.2f} GiB", f"{row['beyond_held_gib']:.2f} GiB",
        )
        for row in rows
    ]  # fmt: skip
    return markdown(("devices", "weights", "held by the devices", "peak", "beyond what is held"), lines)


def cache_table(commands: list[dict]) -> str:
    """Whole commands without and with the compilation cache (`experiments.bench.cache`)."""
    lines = [
        (
            row["command"], *(f"{row[side]['median']:.1f} s" for side in ("off", "cold", "warm")),
            f"{row['warm_over_off']:.2f}", f"{row['cache']['programs']} files, {row['cache']['bytes'] / 1e6:.1f} MB",
        )
        for row in commands
    ]  # fmt: skip
    return markdown(
        ("command", "no cache", "empty cache", "filled cache", "filled over none", "the cache holds"), lines
    )


def queue_table(rows: list[dict]) -> str:
    """Batches generated to their ends, and a queue that refills them (`experiments.bench.queue`)."""
    lines = [
        (
            row["sampler"], f"{row['temperature']:g}",
            *(f"{row[side]['median']:.2f} s, {row[side]['idle']:.1%}" for side in ("batches", "queue")),
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return markdown(("sampler", "temperature", "batches: time, idle", "queue: time, idle", "times as fast"), lines)


def bfloat16_logits_table(rows: list[dict]) -> str:
    """Errors of bfloat16 logits over float32's deviation, by model and side (`experiments.bench.bfloat16`)."""

    def share(value: float) -> str:
        return f"{value:.2%}"

    lines = []
    for row in rows:
        for side in ("zaya_jax", "transformers"):
            if side not in row:
                continue
            found = row[side]
            kept, whole = found["unchanged"], found["all"]
            lines.append(
                (
                    row["model"], side, "" if kept["rms"] is None else f"{kept['rms']:.4f} ({kept['max']:.3f})",
                    f"{row['unchanged_positions']:,} of {row['positions']:,}",
                    f"{whole['rms']:.4f} ({whole['max']:.3f})", share(found["changed_experts"]), f"{found['kl']:.1e}",
                    share(found["top1_differs"]), share(found["top1_ties"]),
                )
            )  # fmt: skip
    head = ("model", "bfloat16 of", "rms (largest) error, experts unchanged", "positions", "all positions",
            "changed experts", "KL, nats", "likeliest token differs", "ties")  # fmt: skip
    return markdown(head, lines)


def bfloat16_greedy_table(rows: list[dict]) -> str:
    """Greedy texts of the lossless sampler against autoregression's (`experiments.bench.bfloat16`)."""

    def gap(row: dict) -> str:
        gaps = [one["gap"] for one in row["differences"] if one["tie"]]
        return f"{max(gaps):.4f} (at most {row['tie_bound']:.4f})" if gaps else ""

    lines = [
        (
            row["model"], row["dtype"], f"{row['identical']} of {row['texts']}", str(row["ties"]), gap(row),
            str(row["failures"]),
        )
        for row in rows
    ]  # fmt: skip
    return markdown(("model", "dtype", "identical texts", "part at a tie", "widest tie", "part elsewhere"), lines)


def bfloat16_cost_table(rows: list[dict]) -> str:
    """Milliseconds of a forward by dtype, and over float32's (`experiments.bench.bfloat16`)."""
    lines = [
        (row["model"], row["kind"], *(f"{time:.2f} ms ({row['over_float32'][side]:.2f}x)" for side, time in
                                      row["milliseconds"].items()))
        for row in rows
    ]  # fmt: skip
    return markdown(("model", "forward", *rows[0]["milliseconds"]), lines)


def long_rows_table(step: dict) -> str:
    """Temporary memory of a training step by row length (`experiments.bench.memory`)."""
    lines, before = [], None
    for row in step["rows"]:
        size = row["temporary_bytes"]
        lines.append((f"{row['clean_tokens']:,}", f"{size / 2**20:.0f} MiB", f"{size / before:.2f}x" if before else ""))
        before = size
    return markdown(("clean tokens", "temporary memory", "for twice the row"), lines)


def trained_rows_table(runs: list[dict]) -> str:
    """One training step of a long row, run (`experiments.bench.memory`)."""
    lines = [
        (
            f"{run['clean_tokens']:,}", str(run.get("documents", 1)), f"{min(run['seconds']):.0f} s",
            f"{run['tokens_per_second']:,.0f}", f"{run['peak_resident_bytes'] / 2**30:.1f} GiB",
        )
        for run in runs
    ]  # fmt: skip
    return markdown(("clean tokens", "documents", "a step", "clean tokens/s", "the process's peak memory"), lines)


def pairs_table(pairs: dict) -> str:
    """Scores computed for each visible one (`experiments.bench.memory`)."""
    return markdown(
        ("rows", "computed / visible"), [(name, f"{row['ratio']:.3f}") for name, row in pairs["rows"].items()]
    )
