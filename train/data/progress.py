"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Self

from tqdm import tqdm

from train.log import time_text

logger = logging.getLogger(__name__)

FORMAT = "{desc}: {percentage:.0f} %|{bar}| {remaining} left{postfix}"


class WorkProgress:
    """`show(done, note)` of `total`, with the time left; silent about work of less than a second.

    On a terminal it is a bar that vanishes in the end, elsewhere `say` gets a line every
    `seconds_between` seconds.
    """

    def __init__(
        self,
        what: str,
        total: float,
        *,
        seconds_between: float = 15.0,
        say: Callable[[str], object] = logger.info,
    ) -> None:
        self.what, self.total = what, total
        self.seconds_between, self.say = seconds_between, say
        terminal = sys.stderr.isatty()
        options = {"disable": not terminal, "bar_format": FORMAT, "leave": False, "delay": 1}
        self.bar = tqdm(total=total, desc=what, dynamic_ncols=True, **options)
        self.begin = self.last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def show(self, done: float, note: str) -> None:
        if not self.bar.disable:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.last < self.seconds_between:
            return
        self.last = now
        rest = (now - self.begin) * (self.total - done) / done if done else None
        left = f", {time_text(rest)} left" if rest is not None else ""
        self.say(f"{self.what}: {100 * done / self.total:.0f} %{left}, {note}")
