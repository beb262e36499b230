"""How far a run is: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
from typing import Self

from tqdm import tqdm

from train.log import logger, time_text
from train.records.history import StepRecord


class Progress:
    """One report a call; only the rank that is told to `show` shows anything.

    A bar takes the place of the lines on the console; train.log has them in any case.
    """

    def __init__(self, *, step: int, steps: int, show: bool) -> None:
        self.steps, self.show = steps, show
        bar = show and sys.stderr.isatty()
        self.bar = tqdm(initial=step, total=steps, unit="step", disable=not bar, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def report(self, record: StepRecord, tokens: float) -> None:
        """The step that was just done; `tokens` a second."""
        if not self.show:
            return
        self.bar.set_postfix_str(f"loss {record.loss:.4f}, {tokens:,.0f} tokens/s", refresh=False)
        self.bar.update(record.step - self.bar.n)
        left = time_text((self.steps - record.step) * record.seconds)
        logger.info(
            f"step {record.step}/{self.steps}  loss {record.loss:.4f}  lr {record.lr:.2e}  "
            f"grad norm {record.grad_norm:.3f}  {tokens:,.0f} tokens/s  "
            f"{record.seconds:.2f} s/step  {left} left",
            extra={"on_bar": not self.bar.disable},
        )
