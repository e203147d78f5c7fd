"""Searches a folder of your own images by text or image.

    python examples/search_folder.py search ~/Pictures "a dog on a beach" [--image X.jpg] [--page result.html]

The first search encodes every image with a published checkpoint (TIGER-Lab/VLM2Vec-Full, downloaded once; --model names
another one, or a folder) and keeps the vectors in a cache; later ones encode new and changed images only. To keep an
index elsewhere, and to search it without looking at the folder again:

    python examples/search_folder.py index FOLDER --model DIR --out INDEX
    python examples/search_folder.py find INDEX "a red car" [--top 12]

An index holds one vector per image (vectors-*.npy) and their names (index.json). Images that cannot be read are named,
counted and left out. Instructions: `VLM2Vec.encode_queries`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import ConfigDict, Field

from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError, printable, run_program
from vlm2vec.evaluation.retrieval.nearest import nearest
from vlm2vec.files import committed
from vlm2vec.formats.json_files import Sha256, StrictModel, checked
from vlm2vec.images.decode import check_image, open_image
from vlm2vec.images.folder import ImageFolder
from vlm2vec.item_rules import check_shape
from vlm2vec.messages.command_line import Parser
from vlm2vec.model_folder.digest import fingerprint
from vlm2vec.model_folder.loading import find_folders

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
IMAGES_AT_A_TIME = 256  # are read and encoded together
# All vectors are written anew once this share of them is new, so that a large folder is not written at every step.
UNWRITTEN_SHARE = 1 / 8
THUMBNAIL = (320, 320)  # pixels
PAGE = Path(__file__).with_name("search_folder.html.j2")
SHOWN_FAULTS = 5

DEFAULT_MODEL = "TIGER-Lab/VLM2Vec-Full"
# What `search` asks a model that was trained on MMEB's texts; others have their own in their prompt format.
QUERY_INSTRUCTION = "Find me an everyday image that matches the given caption: {text}."
IMAGE_INSTRUCTION = "<|image_1|> Represent the given image."

Vectors = npt.NDArray[np.float32]


class Index(StrictModel):
    """The file index.json.

    Attributes:
        folder: Where the images are.
        model: Where the model was loaded from.
        identity: A hash of its weights and settings; vectors of a different model do not belong to the index.
        instruction: What the images were encoded with; "" for none.
        names: Paths of the images from `folder`, sorted.
        contents: SHA-256 of each image's bytes.
        vectors: The file with their vectors, float32 (images, hidden), in the same order.
    """

    model_config = ConfigDict(extra="forbid")

    folder: str
    model: str
    identity: Sha256
    instruction: str
    names: list[str]
    contents: list[Sha256]
    vectors: Annotated[str, Field(pattern=r"^vectors-[0-9a-f]{64}\.npy$")]


@dataclass(frozen=True)
class Stored:
    """An index on disk; `vectors` is a memory map."""

    facts: Index
    vectors: Vectors


def read_index(folder: Path) -> Stored:
    """Opens an index.

    Raises:
        InputError: There is none, or its files do not belong together.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"{folder}: no index there; `examples/search_folder.py index` makes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    facts = checked(Index, content, path)
    try:
        vectors = np.load(folder / facts.vectors, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / facts.vectors}: cannot be read ({error}); index the images again") from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not len(vectors) == len(facts.names) == len(facts.contents):
        raise InputError(f"{folder}: {len(facts.names)} names, but vectors of shape {vectors.shape}; index them again")
    return Stored(facts, vectors)


def write_index(
    folder: Path,
    facts: Mapping[str, str],
    contents: Mapping[str, str],
    known: Mapping[str, Vectors],
    stored: Index | None,
) -> Index:
    """Writes the vectors under a name of their own, then index.json, then removes vectors of earlier indices.

    Args:
        folder: Of the index.
        facts: Of `Index`, but for names, contents and vectors.
        contents: By name, an image's SHA-256.
        known: By SHA-256, an image's vector; images without one are left for later.
        stored: What is there; nothing is written if it would be the same.

    Returns:
        What is there now.
    """
    names = sorted(name for name, content in contents.items() if content in known)
    listed = {**facts, "names": names, "contents": [contents[name] for name in names]}
    if stored is not None and stored.model_dump(exclude={"vectors"}) == listed:
        return stored
    vectors = np.stack([known[contents[name]] for name in names])
    file = f"vectors-{hashlib.sha256(json.dumps(names).encode() + vectors.tobytes()).hexdigest()}.npy"
    index = Index.model_validate({**listed, "vectors": file})
    folder.mkdir(parents=True, exist_ok=True)
    with committed(folder / file) as temporary, temporary.open("wb") as opened:
        np.save(opened, vectors, allow_pickle=False)
    with committed(folder / "index.json") as temporary:
        temporary.write_text(index.model_dump_json(), encoding="utf-8")
    for old in folder.glob("vectors-*.npy"):
        if old.name != file:
            old.unlink()
    return index


def scan(images: ImageFolder) -> tuple[dict[str, str], list[str]]:
    """SHA-256 of every image by its path from the folder, and what is wrong with what cannot be used.

    Hidden files and folders, and files that are not named like images, are none. Links to folders are not followed.
    """
    contents: dict[str, str] = {}
    faults: list[str] = []

    def unreadable(error: OSError) -> None:
        faults.append(f"{error.filename}: cannot be read ({error.strerror})")

    for path, folders, files in os.walk(images.root, onerror=unreadable):
        here = Path(path).relative_to(images.root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        faults += [f"{here / name}: a link to a folder" for name in folders if (Path(path) / name).is_symlink()]
        for name in sorted(files):
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            image = (here / name).as_posix()
            try:
                if printable(image) != image:
                    raise InputError(f"{printable(image)}: a name that is not UTF-8")
                contents[image] = hashlib.sha256(images.read(image)).hexdigest()
            except InputError as error:
                faults.append(str(error))
    return contents, faults


def usable(data: bytes, name: str) -> bytes:
    """An image's bytes if it can be encoded.

    Raises:
        InputError: Damaged, too large or too thin.
    """
    header = check_image(data, name)
    check_shape(header.width, header.height)
    return data


def load(model: str) -> tuple[VLM2Vec, str]:
    """An encoder, and a hash that tells its vectors from those of others."""
    encoder = VLM2Vec.from_pretrained(model)
    _, _, adapter = find_folders(model, None)
    said = json.dumps(
        [encoder.settings.model_dump(mode="json"), fingerprint([adapter]) if adapter else ""], sort_keys=True
    )
    return encoder, hashlib.sha256(said.encode()).hexdigest()


def update_index(out: Path, folder: str, encoder: VLM2Vec, facts: Mapping[str, str]) -> str:
    """Makes an index, or brings it up to date.

    Args:
        out: Folder of the index.
        folder: The images.
        encoder: Gives their vectors.
        facts: `Index.model`, `.identity` and `.instruction`.

    Returns:
        One line on what the index holds now.

    Raises:
        InputError: The index is of a different model or instruction, or no image can be used.
    """
    images = ImageFolder(folder)
    stored, known = known_vectors(out, facts)
    before = set(stored.names) if stored else set()
    contents, faults = scan(images)
    bad: dict[str, str] = {}
    written, unwritten = {"folder": str(images.root.resolve()), **facts}, 0
    for new in new_vectors(images, contents, known, bad, encoder, facts["instruction"]):
        known.update(new)
        unwritten += len(new)
        if unwritten >= UNWRITTEN_SHARE * len(known):
            stored = write_index(out, written, contents, known, stored)  # an interrupted search continues here
            unwritten = 0
    indexed = {name for name, content in contents.items() if content in known}
    faults += [
        bad.get(content, f"{name}: changed while it was read")
        for name, content in contents.items()
        if content not in known
    ]
    for fault in faults[:SHOWN_FAULTS]:
        print(f"left out: {fault}", file=sys.stderr)
    if not indexed:
        raise InputError(f"{images.root}: no image there that can be used")
    write_index(out, written, contents, known, stored)
    return f"{out}: {len(indexed)} images, {len(before - indexed)} dropped, {len(faults)} left out"


def known_vectors(out: Path, facts: Mapping[str, str]) -> tuple[Index | None, dict[str, Vectors]]:
    """An index if there is one, and its vectors by the SHA-256 of their images.

    Raises:
        InputError: The index is of a different model or instruction.
    """
    if not (out / "index.json").exists():
        return None, {}
    stored = read_index(out)
    index = stored.facts
    if (index.identity, index.instruction) != (facts["identity"], facts["instruction"]):
        raise InputError(
            f"{out}: made with another model, or with other settings or instructions ({index.model}, "
            f"{index.instruction!r}); choose a different folder for the index, or remove it"
        )
    return index, dict(zip(index.contents, np.array(stored.vectors), strict=True))


def new_vectors(
    images: ImageFolder,
    contents: dict[str, str],
    known: Mapping[str, Vectors],
    bad: dict[str, str],
    encoder: VLM2Vec,
    instruction: str,
) -> Iterator[dict[str, Vectors]]:
    """Encodes what is not known yet: vectors by the SHA-256 of their images, some at a time.

    Args:
        images: The folder.
        contents: By name, an image's SHA-256; brought up to date for images that change meanwhile.
        known: By SHA-256, an image's vector.
        bad: Gets, by SHA-256, what is wrong with images that cannot be used.
        encoder: Gives the vectors.
        instruction: What the images are encoded with.
    """
    names = {content: name for name, content in contents.items()}  # a copy is not encoded again
    waiting = [name for content, name in names.items() if content not in known]
    for start in range(0, len(waiting), IMAGES_AT_A_TIME):
        good: dict[str, bytes] = {}
        for name in waiting[start : start + IMAGES_AT_A_TIME]:
            try:
                data = usable(images.read(name), name)
            except InputError as error:
                bad[contents[name]] = str(error)
            else:
                contents[name] = hashlib.sha256(data).hexdigest()  # of what is encoded, if it changed meanwhile
                good[contents[name]] = data
        if good:
            vectors = encoder.encode_documents(images=list(good.values()), instruction=instruction)
            yield dict(zip(good, vectors.numpy(), strict=True))
            print(f"{min(start + IMAGES_AT_A_TIME, len(waiting))} of {len(waiting)} new images", file=sys.stderr)


def index(arguments: argparse.Namespace) -> None:
    """Makes an index, or brings it up to date."""
    encoder, identity = load(arguments.model)
    facts = {"model": place(arguments.model), "identity": identity, "instruction": arguments.instruction}
    print(update_index(Path(arguments.out), arguments.folder, encoder, facts))


def place(model: str) -> str:
    """A model's repository, or its folder wherever the next search is started."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def search(arguments: argparse.Namespace) -> None:
    """Brings a folder's index up to date and searches it."""
    refuse_impossible(arguments)
    root = ImageFolder(arguments.folder).root.resolve()  # refused before a model is downloaded
    encoder, identity = load(arguments.model)
    asks = not encoder.processor.prompt_format.takes_instruction  # in the text itself, as MMEB's data do
    instruction = arguments.image_instruction
    if instruction is None:
        instruction = IMAGE_INSTRUCTION if asks else ""
    facts = {"model": place(arguments.model), "identity": identity, "instruction": instruction}
    key = hashlib.sha256(json.dumps([str(root), facts], sort_keys=True).encode()).hexdigest()[:16]
    out = Path(arguments.index) if arguments.index else cache_folder() / f"{root.name}-{key}"
    print(update_index(out, arguments.folder, encoder, facts), file=sys.stderr)
    if arguments.instruction is None and arguments.text:
        arguments.instruction = QUERY_INSTRUCTION if asks and not arguments.image else ""
    elif arguments.instruction is None:  # an image alone is encoded as those of the folder, so that it finds itself
        arguments.instruction = instruction
    show(arguments, read_index(out), encoder)


def cache_folder() -> Path:
    """Where indexes are kept that have no place of their own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm2vec" / "search_folder"


def refuse_impossible(arguments: argparse.Namespace) -> None:
    """Looks at a query's flags before a model is loaded.

    Raises:
        InputError: A flag is missing or impossible.
    """
    if not arguments.text and not arguments.image:
        raise InputError("give a text, --image, or both")
    if arguments.top < 1:
        raise InputError(f"--top {arguments.top}: must be 1 or more")
    if arguments.page and not Path(arguments.page).absolute().parent.is_dir():
        raise InputError(f"--page {arguments.page}: there is no such folder")


def find(arguments: argparse.Namespace) -> None:
    """Searches an index as it is."""
    refuse_impossible(arguments)
    stored = read_index(Path(arguments.index))
    encoder, identity = load(arguments.model or stored.facts.model)
    if identity != stored.facts.identity:
        raise InputError(
            f"{arguments.index}: made with another model than {arguments.model or stored.facts.model} is now"
        )
    show(arguments, stored, encoder)


def show(arguments: argparse.Namespace, stored: Stored, encoder: VLM2Vec) -> None:
    """Prints the best images, and writes a page with thumbnails if one is asked for."""
    facts, total = stored.facts, len(stored.vectors)
    query = encoder.encode_queries([arguments.text], [arguments.image], arguments.instruction)
    places, scores = nearest(query.numpy(), stored.vectors, min(arguments.top, total))
    results = [(facts.names[place], float(score)) for place, score in zip(places[0], scores[0], strict=True)]
    for name, score in results:
        print(f"{score:.4f}  {name}")
    if arguments.page:
        asked = data_uri(open_image(arguments.image)) if arguments.image else None
        shown = [{"name": name, "score": score, **thumbnail(Path(facts.folder), name)} for name, score in results]
        template = jinja2.Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
        title = arguments.text or Path(arguments.image).name
        text = template.render(query=printable(title), asked=asked, results=shown, total=total)
        with committed(Path(arguments.page)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{arguments.page}: written", file=sys.stderr)


def thumbnail(folder: Path, name: str) -> dict[str, str]:
    """A result's `image` for the page, or its `fault` where the image is gone or damaged since."""
    try:
        return {"image": data_uri(open_image(ImageFolder(folder).read(name), name))}
    except InputError:
        return {"fault": "cannot be read any more"}


def data_uri(image: Image.Image) -> str:
    """A small JPEG as a URL."""
    buffer = io.BytesIO()
    image.thumbnail(THUMBNAIL)
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_MODEL_HELP = "Model folder, adapter folder or Hugging Face name."


def search_flags() -> Parser:
    """Flags of `search`."""
    made = Parser(
        prog="python examples/search_folder.py search",
        description="Searches a folder of images; new images are encoded first.",
        examples=('python examples/search_folder.py search PHOTOS "a red bicycle" --page found.html',),
    )
    made.add_argument("folder", help="Folder of images, with its sub-folders.")
    add_query(made, instruction=None)
    made.add_argument("--model", default=DEFAULT_MODEL, metavar="DIR|NAME", help=_MODEL_HELP)
    made.add_argument(
        "--index",
        metavar="DIR",
        help="Folder of the index. If not given: one in ~/.cache, or XDG_CACHE_HOME.",
    )
    made.add_argument(
        "--image_instruction", help="Instruction of the images. If not given: the checkpoint's own, else MMEB's."
    )
    return made


def index_flags() -> Parser:
    """Flags of `index`."""
    made = Parser(
        prog="python examples/search_folder.py index",
        description="Encodes the new images of a folder.",
        examples=("python examples/search_folder.py index PHOTOS --model demo/trained --out INDEX",),
    )
    made.add_argument("folder", help="Folder of images, with its sub-folders.")
    made.add_argument("--model", required=True, metavar="DIR|NAME", help=_MODEL_HELP)
    made.add_argument("--out", required=True, metavar="DIR", help="Folder of the index.")
    made.add_argument(
        "--instruction", default="", help="Instruction of the images. If not given: the prompt format's own, if any."
    )
    return made


def find_flags() -> Parser:
    """Flags of `find`."""
    made = Parser(
        prog="python examples/search_folder.py find",
        description="Searches an index as it is.",
        examples=('python examples/search_folder.py find INDEX "a red bicycle" --top 5',),
    )
    made.add_argument("index", help="Folder of the index.")
    add_query(made, instruction="")
    made.add_argument("--model", metavar="DIR|NAME", help="Where the index's model is now, if it has moved.")
    return made


def add_query(parser: Parser, instruction: str | None) -> None:
    """Adds what `search` and `find` have in common."""
    parser.add_argument("text", nargs="?", help="What to look for.")
    parser.add_argument("--image", metavar="FILE", help="Image file to look for, alone or with a text.")
    own = "the checkpoint's own, else MMEB's" if instruction is None else "no instruction"
    parser.add_argument(
        "--instruction",
        default=instruction,
        help=f"Instruction of the query, which may contain {{text}} in the place of its text. If not given: {own}.",
    )
    parser.add_argument("--top", type=int, default=12, help="Number of images to show.")
    parser.add_argument("--page", metavar="FILE", help="HTML file to write the results to, with thumbnails.")


def main() -> None:
    """Parses the command line; searches or indexes."""
    commands = {"search": (search_flags, search), "index": (index_flags, index), "find": (find_flags, find)}
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("-h", "--help"):
        print(__doc__)
    elif command not in commands:
        raise InputError(
            f"expected search, index or find, not {command!r}; examples/search_folder.py --help shows them"
        )
    else:
        flags, run = commands[command]
        run(flags().parse_args(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(run_program(main))
