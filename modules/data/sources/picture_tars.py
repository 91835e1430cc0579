"""The pictures of webdataset shards, one a sample, whichever image format each of them has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from datasets import BuilderConfig, DatasetInfo, Features
from datasets import Image as ImageFeature
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from modules.data.images.image_kinds import suffixes
from modules.data.sources.shard_files import Cell, Place, tar_members
from modules.errors import ArgumentError

COLUMN = "image"  # the only one
LOOKED_AT = 5  # samples, to see which members there are


@dataclass
class PictureTarsConfig(BuilderConfig):
    """image_column: as in `candidates`."""

    image_column: str = COLUMN


class PictureTars(WebDataset):
    """A builder of one column of pictures; what else is in the shards is not read.

    A sample's picture is the member image_column, or if it has none, the one that differs in its
    image format alone. A sample without a picture has an empty one, whose path says so.
    """

    BUILDER_CONFIG_CLASS = PictureTarsConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=Features({COLUMN: ImageFeature()}))

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        splits = super()._split_generators(dl_manager)
        self._look_at(_without_places(splits[0].gen_kwargs["tar_iterators"][0]))
        return splits

    def _look_at(self, members: Iterable[tuple[str, BinaryIO, int]]) -> None:
        """Sets whether other members stand in. Raises ArgumentError for a column that is none."""
        column, known, found = self.config.image_column, {}, []
        for _, fields, _ in islice(self._samples(members), LOOKED_AT):
            known.update(dict.fromkeys(fields))
            found.append(candidates(fields, column))
        if found and not any(found):
            images = [name for name in known if candidates([name], name)]
            raise ArgumentError(
                f"--image_column={column} is not a column of images in the shards, whose samples "
                f"have {', '.join(known)}; images are in: {', '.join(images) or 'none of them'}"
            )
        several = next((names for names in found if len(names) > 1), [])
        self.has_substitutes = not several
        if several and several[0].lower() != column.lower():
            raise ArgumentError(
                f"--image_column={column}: a sample has several images, {', '.join(several)}; name "
                "the one to train on"
            )

    def _generate_examples(
        self, tar_paths: list[str], tar_iterators: list[Iterable[tuple[str, BinaryIO]]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for tar, members in enumerate(tar_iterators):
            samples = self._samples(_without_places(members))
            for number, (key, fields, _) in enumerate(samples):
                yield f"{tar}_{number}", {COLUMN: self._cell(key, fields)}

    def rows(self, file: str, place: Place) -> Iterator[tuple[Cell, int]]:
        """The pictures of a tar from a place on, each with the first byte after its sample."""
        for key, fields, end in self._samples(tar_members(file, place.byte, self.token)):
            yield self._cell(key, fields), end

    def _samples(
        self, members: Iterable[tuple[str, BinaryIO, int]]
    ) -> Iterator[tuple[str, dict[str, bytes], int]]:
        """(key, members by field, the byte after them) of each sample; read is what may be its
        picture."""
        key, fields, end = None, {}, 0
        for name, file, after in members:
            own, field = base_plus_ext(name)
            if own is None:
                continue
            if fields and (own != key or field in fields):
                yield key, fields, end
                fields = {}
            may_be_picture = candidates([field], self.config.image_column)
            key, fields[field], end = own, file.read() if may_be_picture else b"", after
        if fields:
            yield key, fields, end

    def _cell(self, key: str, fields: Mapping[str, bytes]) -> Cell:
        column = self.config.image_column
        name = next(iter(candidates(fields, column)), None)
        if name is None or not (self.has_substitutes or name.lower() == column.lower()):
            return {"path": f"{key} (no {column} among its {', '.join(fields)})", "bytes": b""}
        return {"path": f"{key}.{name}", "bytes": fields[name]}


def candidates(fields: Iterable[str], column: str) -> list[str]:
    """Which members of a sample may be its picture, the best first.

    fields: what follows the first dot of their names. column: such a name, as "jpg" or "mask.png",
    which pictures in other formats stand in for ("png"; "mask.jpg"); or a name without format, as
    "photo" for "photo.jpg". "image", the default, is also simply "jpg".
    """
    column = column.lower()
    stem, _, kind = column.rpartition(".")
    stems = [stem] if "." + kind in suffixes() else [column, ""] if column == COLUMN else [column]
    ranks = {}
    for field in fields:
        stem, _, kind = field.lower().rpartition(".")
        if field.lower() == column and kind not in WebDataset.DECODERS:
            ranks[field] = -1
        elif "." + kind in suffixes() and stem in stems:
            ranks[field] = stems.index(stem)
    best = min(ranks.values(), default=0)
    return sorted((name for name in ranks if ranks[name] <= max(best, 0)), key=ranks.get)


def _without_places(
    members: Iterable[tuple[str, BinaryIO]],
) -> Iterator[tuple[str, BinaryIO, int]]:
    return ((name, file, 0) for name, file in members)
