"""Short names of what decides a stage's training: equal keys, equal checkpoints, so that runs can share them."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zaya_jax.data.contents import Digests, of_tokenizer
from zaya_jax.data.packed import read_manifest
from zaya_jax.paths import absolute
from zaya_jax.runs.configuration.settings import Settings, find_template
from zaya_jax.text.tokenizers import load_tokenizer


def stage_keys(config: ConfigDict, setup: Settings, memory: Path | None = None) -> dict[str, str]:
    """For each stage, a short hash of everything that decides what it trains: equal keys, equal checkpoints.

    Of files (tokenizer, template, texts, chats, the checkpoint to start from) it is what they hold, not where they lie.
    All else is hashed as the config file has it, so that a new field's default changes no key of before it.

    Args:
      setup: what `config` was read as.
      memory: a file that remembers digests of large files; see `Digests`.
    """
    digests, tokenizer = Digests(memory), load_tokenizer(config.tokenizer)
    data = {k: v for k, v in json.loads(config.data.to_json_best_effort()).items() if k != "validation_batches"}
    data["mixture"] = _contents(config.data.mixture, digests)
    if data.get("chat_date") is None:  # as of before there was one
        data.pop("chat_date", None)
    if "chat_template" in data:
        data["chat_template"] = find_template(config.data.chat_template, config.tokenizer, tokenizer).source
    model = dataclasses.asdict(setup.model)
    if model["drafter"] is None:  # as of before there were any
        del model["drafter"]
    shared = {
        "seed": config.seed,
        "tokenizer": of_tokenizer(tokenizer),
        "model": model,
        "data": data,
    }
    keys: dict[str, str] = {}
    for name, stage in setup.stages.items():
        # neither when to look nor on which devices decides it
        own = json.loads(config[name].to_json_best_effort())
        own = {k: v for k, v in own.items() if k != "mesh" and not k.endswith("_every")}
        if own.get("mixture") is not None:
            own["mixture"] = _contents(config[name].mixture, digests)
        # the section may name a start that had no steps
        start = stage.start
        if own.get("adapters") is None:  # as of before there were any
            own.pop("adapters", None)
        else:
            own["adapters"] = digests.of_folder(absolute(own["adapters"]))
        own["start"] = digests.of_folder(start) if isinstance(start, Path) else keys[start] if start else None
        decides = json.dumps([shared, own, stage.data_seed], sort_keys=True)
        keys[name] = hashlib.blake2b(decides.encode(), digest_size=6).hexdigest()
    return keys


def _contents(mixture: Any, digests: Digests) -> list[dict[str, Any]]:
    """A config's mixture with digests in its files' places."""
    found = []
    for item in mixture:
        plain = json.loads(item.to_json_best_effort()) if isinstance(item, ConfigDict) else dict(item)
        contents = {kind: digests.of_texts(plain[kind]) for kind in ("text", "chat") if kind in plain}
        if "packed" in plain:
            contents["packed"] = read_manifest(absolute(plain["packed"]))["digest"]
        found.append(plain | contents)
    return found
