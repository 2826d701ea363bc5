"""Where training puts draft blocks: a registry, one entry a layout, that `Objective.row_layout` picks from by name.

A new one is one `register_layout(TrainingLayout(...))`, which may stand in a config file:
docs/extending.md#a-new-layout.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from zaya_jax.architecture.layout import Layout
from zaya_jax.errors import UserError
from zaya_jax.registry import Registry, caller

Array = jax.Array
Drawn = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TrainingLayout:
    """A way to lay out training rows.

    Attributes:
      name: what `Objective.row_layout` says.
      words: a sentence for readers.
      draw: (key, batch, row, block_size) -> where blocks start, drawn anew at every step: {"first": int32 [B, N]}, the
        row index of each block's first slot, or {"offset": int32 [B]}, that of a grid's first block.
        The number of blocks is static. Traced.
      build: (tokens int32 [B, T], block_size=, document=int32 [B, T], and what was drawn) -> a Layout whose
        clean rows are the tokens and whose blocks stand where `draw` said, in that order. Traced.
      random_masking: whether `build` also takes reveal=bool [B, T], and `draw` an offset.
      splits: whether the blocks that start in each part of a row follow each other and are as many in every part: then
        devices can share rows (a mesh's `context`).

    Raises:
      UserError: naming the field.
    """

    name: str
    words: str
    draw: Callable[[Array, int, int, int], Drawn]
    build: Callable[..., Layout] = Layout.blocks_at
    random_masking: bool = False
    splits: bool = False

    def __post_init__(self) -> None:
        for field, right, may_be in (
            ("words", isinstance(self.words, str) and bool(self.words.strip()), "a sentence"),
            ("draw", callable(self.draw), "a function"),
            ("build", callable(self.build), "a function"),
        ):
            if not right:
                raise UserError(f"TrainingLayout.{field}: got {getattr(self, field)!r}, may be {may_be}")

    def drawn(self, key: Array, batch: int, row: int, block_size: int) -> Drawn:
        """What `draw` gives. UserError unless it is a "first" or an "offset" of integers, a row of the batch each."""
        found = self.draw(key, batch, row, block_size)
        shapes = {"first": 2, "offset": 1}
        right = isinstance(found, Mapping) and len(found) == 1 and set(found) <= set(shapes)
        if not right:
            raise UserError(
                f"layout {self.name}: draw gave {found!r:.60}, may give {{'first': ...}} or {{'offset': ...}}"
            )
        ((name, value),) = found.items()
        if value.ndim != shapes[name] or value.shape[0] != batch or value.dtype.kind not in "iu":
            got, may_be = f"{value.dtype}{list(value.shape)}", "[batch, block]" if name == "first" else "[batch]"
            raise UserError(f"layout {self.name}: draw gave {name} {got}, may give int32 {may_be} with batch {batch}")
        return dict(found)


LAYOUTS: Registry[TrainingLayout] = Registry("layout")


def register_layout(layout: TrainingLayout) -> TrainingLayout:
    """Adds a training layout and returns it. The same file, read again, replaces its layout.

    Raises:
      UserError: the name is one of this package's layouts, or another file has registered it.
    """
    before = dict(LAYOUTS).get(layout.name)
    LAYOUTS.add(layout.name, layout, caller())
    if before not in (None, layout):
        jax.clear_caches()  # compiled programs know a layout by its name
    return layout


def _anywhere(key: Array, batch: int, row: int, block_size: int) -> Drawn:
    return {"offset": jax.random.randint(key, (batch,), 0, block_size)}


register_layout(
    TrainingLayout(
        "tidar",
        "Every token but a row's first few is drafted once: blocks on a grid whose offset is drawn.",
        _anywhere,
        Layout.tidar,
        random_masking=True,
        splits=True,
    )
)
