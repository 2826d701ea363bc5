"""ZAYA1-8B to a block-diffusion model, in the phases of ZAYA1-8B-Diffusion-Preview, and a twin that runs on a CPU.

Command:   python -m experiments.run --config=configs/zaya1_8b.py:start=BASE,tokenizer=TOKENIZER,data=DATA
           python -m experiments.run --config=configs/zaya1_8b.py:scratch,tokenizer=TOKENIZER,data=DATA
           python -m experiments.run --config=configs/zaya1_8b.py:twin --workdir=runs/zaya1_twin
Arguments: start= folder of ZAYA1-8B-base (in the layout of transformers 5.23); tokenizer= its tokenizer.json, with its
           config.json beside it; data= a folder that holds midtrain/, extend/ (text or .jsonl files) and sft/ (.jsonl
           files of chats), and for :scratch pretrain/; rows= in its place, a folder of the same names that
           experiments.prepare filled (--row_length 4096, 32768, 131072; sft with --packing=best_fit); block_size=16;
           devices=8, GPUs to lay it over; :scratch, from nothing in place of the base; :twin, the same phases tiny, on
           data that every checkout has
Hardware:  the 8B phases have not been run (README.md has what was compiled); the twin, 2 CPU cores
Time and result: the tests run the twin from mid-training on, in about a minute; it shows that phases work, nothing else

From the base: TiDAR mid-training at 32k, extension to 128k, diffusion SFT on chats. From nothing, pretraining at 4k
comes before. The twin has all four.

Published (docs/architecture.md#training-facts, docs/method.md#published-numbers): the order of the phases; contexts 4k,
32k, 128k; 12T tokens of pretraining, 600B of mid-training, 500B of extension; rotary bases 1e4, 1e6, 5e6 at these
contexts, with nothing else changed; 4096 x 4096 = 16.8M tokens a step in pretraining; Muon with AdamW's RMS; load
balancing by a controller on the global batch; blocks of 16, one step from masks to tokens; best-fit packing and trimmed
thinking in SFT.

Not published, so our choice: every learning rate, schedule, warm-up, decay and clipping; as many tokens a step in every
phase; alpha = 1, which is TiDAR's own for most of its runs; that mid-training of the diffusion model uses the base's
1e6 and extension and SFT use 5e6, as ZAYA1's own phases of these contexts do; that the optimizer's state comes along
into the extension and nowhere else; all data and their mixtures; 50B tokens of SFT (its size is unstated); float32
parameters under bfloat16 compute; how it lies over devices (weights over 8 of them by FSDP, rows of 128k cut in 4 from
32 devices on) and in how many pieces a step's batch is run. At 64k slots a device, fetching experts'
weights sends about what a ragged all-to-all of tokens sends (a seventh of what gathering them does) in half of the
memory (results/lower: fsdp 8 against expert 8).

In SFT only answers have a loss, drafts included. Objectives shift every row's block grid by a random offset, so drafts
are trained at every distance from a turn's start (docs/method.md#training).
"""

import dataclasses
import math

from ml_collections import ConfigDict

from configs.chats import FILE as CHATS
from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """What tells the twin from the real one."""

    contexts: tuple[int, int, int]  # tokens a row: of pretraining, mid-training, and extension and SFT
    tokens_per_step: int
    tokens: tuple[float, float, float, float]  # of each phase
    learning_rates: tuple[float, float, float, float]
    every: int  # steps between evaluations and between saves

    def of(self, number: int, objective: Objective, devices: int, **rest) -> ConfigDict:
        """Phase `number` of the recipe."""
        row_length = self.contexts[min(number, 2)]
        steps, rows = round(self.tokens[number] / self.tokens_per_step), self.tokens_per_step // row_length
        context = 4 if devices >= 32 and row_length > 32_768 else 1
        fsdp = math.gcd(8, devices // context)
        optimizer = OptimizerConfig(
            "muon",
            learning_rate=self.learning_rates[number],
            warmup_steps=steps // 100,
            weight_decay=0.1,
            clip_norm=1.0,
            accumulate=max(1, rows // (devices // context)) if devices > 1 else 1,  # a row a device at a time
        )
        everywhere: dict[str, tuple[str, ...]] = {"embed": ("fsdp", "context")}
        rest |= {"row_length": row_length, "batch_size": rows}
        rest["mesh"] = mesh(everywhere, data=devices // context // fsdp, fsdp=fsdp, context=context)
        return phase(steps, objective, optimizer, evaluate_every=self.every, save_every=self.every, **rest)


REAL = Size((4096, 32_768, 131_072), 2**24, (12e12, 600e9, 500e9, 50e9), (4e-4, 1e-4, 5e-5, 2e-5), every=500)
TWIN = Size((64, 128, 256), 1024, (6 * 1024, 6 * 1024, 4 * 1024, 4 * 1024), (3e-3, 3e-3, 1e-3, 1e-3), every=2)


# A GPU wants large tiles of attention: 4096 x 4096 where all is visible.
REAL_EXECUTION = dict(remat="full", query_chunk=8192)


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(
        arg, twin=False, scratch=False, start="ZAYA1-8B-base", tokenizer="TOKENIZER", data="DATA", rows="",
        block_size=16, devices=8,
    )  # fmt: skip
    size, devices = (TWIN, 1) if chosen.twin else (REAL, chosen.devices)
    c = ConfigDict()
    c.name = "zaya1_twin" if chosen.twin else "zaya1_8b"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()  # the phases have their own
    c.tokenizer = "bytes" if chosen.twin else chosen.tokenizer
    c.model = model("tiny") if chosen.twin else model("zaya1_8b", param_dtype="float32")
    c.execution = execution(**({} if chosen.twin else REAL_EXECUTION))

    sources = _twin_sources() if chosen.twin else _sources(chosen.data, chosen.rows)
    c.data = data(size.contexts[1], *sources["midtrain"], task_documents=10_000_000)
    if chosen.twin:
        c.data.update(task_documents=400, validation_batches=1)
    mixture = {name: tuple(map(ConfigDict, items)) for name, items in sources.items()}

    draft = Objective("tidar", block_size=chosen.block_size, alpha=1.0, masking="full")
    answers = dataclasses.replace(draft, loss_on="answers")
    c.phases = ("midtrain", "extend", "sft")
    c.midtrain = size.of(1, draft, devices, rope_theta=1e6, start=chosen.start, mixture=mixture["midtrain"])
    c.extend = size.of(2, draft, devices, rope_theta=5e6, optimizer_state="continue", mixture=mixture["extend"])
    c.sft = size.of(3, answers, devices, rope_theta=5e6, packing="best_fit", mixture=mixture["sft"])
    if chosen.scratch or chosen.twin:
        c.phases = ("pretrain", *c.phases)
        c.pretrain = size.of(0, Objective("autoregressive"), devices, rope_theta=1e4, mixture=mixture["pretrain"])
        c.midtrain.start = "pretrain"

    # its problems are functions to complete, so they are not asked in chats
    c.evaluate = evaluation(("human_eval",), prompts=164, phase="sft", max_new_tokens=512)
    if chosen.twin:
        c.evaluate.update(tasks=("addition",), chat=True, prompts=4, batch=4, max_new_tokens=16, cost=False)
        c.evaluate.update(samplers=("autoregressive", "lossless"), temperatures=(0.0,))
    return c


def _sources(folder: str, rows: str) -> dict[str, list[dict]]:
    """Phase -> its mixture, in the user's folder; of rows, where there are any."""
    if rows:
        return {
            name: [{"packed": f"{rows}/{name}", "weight": 1.0}] for name in ("pretrain", "midtrain", "extend", "sft")
        }
    text = {name: [{"text": [f"{folder}/{name}"], "weight": 1.0}] for name in ("pretrain", "midtrain", "extend")}
    return text | {"sft": [{"chat": [f"{folder}/sft"], "weight": 1.0}]}


def _twin_sources() -> dict[str, list[dict]]:
    """Phase -> its mixture, of what every checkout has."""
    code, addition = {"text": "stdlib"}, {"task": "addition", "options": {"digits": 3}}
    return {
        "pretrain": [code | {"weight": 0.8}, addition | {"weight": 0.2}],
        "midtrain": [code | {"weight": 0.5}, addition | {"weight": 0.5}],
        "extend": [code | {"weight": 1.0}],
        "sft": [{"chat": [str(CHATS)], "weight": 0.5}, addition | {"as_chat": True, "weight": 0.5}],
    }
