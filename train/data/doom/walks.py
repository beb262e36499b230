"""A walk through a map of Freedoom, filmed take by take.

ViZDoom renders it; who walks is steered by the depth buffer to where there is room, since a blind
one hugs walls. A walk is drawn from its map and number alone: its pixels and captions are the same
in every process and on every machine that has the same version of ViZDoom.
"""

import contextlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

MAPS = [f"freedoom2/MAP{i:02}" for i in range(1, 33)]
MAPS += [f"freedoom1/E{e}M{m}" for e in range(1, 5) for m in range(1, 10)]
HELD_OUT = MAPS[4::8]
"""The maps of the validation split, none of which is in training."""
TICS = 2  # of the game's clock for each frame
FPS = Fraction(35, TICS)
ACTIONS = {  # forward, backward, left, right, degrees to the right; for each tic
    "walks forward": (1, 0, 0, 0, 0.0),
    "walks backward": (0, 1, 0, 0, 0.0),
    "strafes left": (0, 0, 1, 0, 0.0),
    "strafes right": (0, 0, 0, 1, 0.0),
    "turns left": (0, 0, 0, 0, -3.0),
    "turns right": (0, 0, 0, 0, 3.0),
    "walks forward while turning left": (1, 0, 0, 0, -1.5),
    "walks forward while turning right": (1, 0, 0, 0, 1.5),
}
NEAR = 12.0  # of the depth buffer's 255, under which something is in the way
FAR = 40.0  # and over which one may walk on for the time of a take
STILL = 1.0  # mean absolute change of a frame's pixels, of 255, under which nothing moves
LEAST_GOOD = 0.9  # share of a take's frames that move, and have room ahead
TRIES = 8  # takes until one is good; else the best of them
LEAST_AREA = 1 / 320  # of the picture that an object covers to be named
MOST_NAMED = 3


@dataclass(frozen=True)
class Take:
    """frames uint8 [T, H, W, 3], and what is to be seen."""

    frames: np.ndarray
    caption: str


class Walk:
    """Films in one map; a context manager, since the game is a process of its own."""

    def __init__(self, name: str, height: int) -> None:
        import vizdoom as vzd

        wad, level = name.split("/")
        game = self.game = vzd.DoomGame()
        game.set_doom_game_path(str(Path(vzd.__file__).parent / f"{wad}.wad"))
        game.set_doom_map(level)
        size = f"RES_{height * 4 // 3}X{height}"
        game.set_screen_resolution(getattr(vzd.ScreenResolution, size))
        game.set_screen_format(vzd.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        game.set_labels_buffer_enabled(True)
        for what in ("hud", "weapon", "crosshair", "messages", "screen_flashes", "effects_sprites"):
            getattr(game, f"set_render_{what}")(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vzd.Mode.PLAYER)
        game.set_episode_timeout(0)
        names = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT")
        buttons = [getattr(vzd.Button, name) for name in (*names, "TURN_LEFT_RIGHT_DELTA")]
        game.set_available_buttons(buttons)
        self.name = name

    def __enter__(self) -> "Walk":
        self._scratch = (
            TemporaryDirectory()
        )  # for the settings that the game writes where it starts
        with contextlib.chdir(self._scratch.name):
            self.game.init()
        return self

    def __exit__(self, *exc: object) -> None:
        self.game.close()
        self._scratch.cleanup()

    def takes(self, number: int, count: int, num_frames: int) -> Iterator[Take]:
        """The first `count` takes of the walk of this number."""
        rng = np.random.default_rng((zlib.crc32(self.name.encode()), number))
        self._begin(rng)
        for _ in range(count):
            best, most, action = None, -1.0, list(ACTIONS)[rng.integers(len(ACTIONS))]
            for _ in range(TRIES):
                self._wander(rng, int(rng.integers(10, 40)), FAR if "forward" in action else NEAR)
                take, good = self._film(rng, action, num_frames)
                if good > most:
                    best, most = take, good
                if most >= LEAST_GOOD:
                    break
            assert best is not None
            yield best

    def _begin(self, rng: np.random.Generator) -> None:
        self.game.set_seed(int(rng.integers(2**31)))
        self.game.new_episode()
        for cheat in ("god", "notarget"):
            self.game.send_game_command(cheat)

    def _state(self, rng: np.random.Generator) -> Any:
        """What is to be seen now; from the map's beginning, where the walk came to its end."""
        while (state := self.game.get_state()) is None:
            self._begin(rng)
        return state

    def _wander(self, rng: np.random.Generator, steps: int, ahead: float) -> None:
        """Forward, to where there is room, and in the end so much of it ahead, if it is found."""
        for step in range(steps + 8):
            room = _room(self._state(rng).depth_buffer)
            middle, best = len(room) // 2, int(room.argmax())
            blocked = room[middle] < NEAR
            if step >= steps and room[middle] >= ahead:
                return
            turn = rng.uniform(-6, 6)
            if room[middle] < 0.9 * room[best]:
                turn = (best / len(room) - 0.5) * 60
            if room[best] < NEAR:
                turn = rng.choice((-1, 1)) * rng.uniform(60, 120)
            self.game.make_action([0 if blocked else 1, 0, 0, 0, float(turn)], 4)

    def _film(self, rng: np.random.Generator, action: str, num_frames: int) -> tuple[Take, float]:
        """A take of one action, and the share of its frames that are good."""
        frames, room, areas = [], [], {}
        for _ in range(num_frames):
            state = self._state(rng)
            frames.append(state.screen_buffer.copy())
            room.append(_room(state.depth_buffer).max() >= NEAR)
            for label in state.labels:
                area = label.width * label.height / state.depth_buffer.size
                if label.object_name != "DoomPlayer" and area >= LEAST_AREA:
                    name = words(label.object_name)
                    areas[name] = max(area, areas.get(name, 0.0))
            self.game.make_action(list(ACTIONS[action]), TICS)
        seen = sorted(areas, key=lambda name: (-areas[name], name))[:MOST_NAMED]
        caption = f"the camera {action}" + (f" past {', '.join(seen)}" if seen else "")
        film = np.stack(frames)
        changes = np.abs(np.diff(film.astype(np.int16), axis=0)).mean((1, 2, 3))
        return Take(film, caption), float(((changes >= STILL) & room[1:]).mean())


def words(name: str) -> str:
    """The words of an object's name.

    >>> words("TallGreenColumn"), words("DeadDoomImp")
    ('tall green column', 'dead doom imp')
    """
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def _room(depth: np.ndarray) -> np.ndarray:
    """How far one sees at eye level, column by column, averaged over a fifth of the width."""
    height, width = depth.shape
    columns = depth[height // 3 : 2 * height // 3].astype(np.float64).mean(0)
    return np.convolve(columns, np.ones(width // 5) / (width // 5), "valid")
