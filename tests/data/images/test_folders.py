"""Images in a folder a class: every format and mode, what is held out, and what is refused by name."""

import json

import numpy as np
import PIL.Image
import pytest

import arch_jax
from arch_jax.data.images import folders, inspection


def save(path, mode="RGB", size=(6, 4), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = PIL.Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image.convert("RGB"))


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        save(tmp_path / "cat" / f"{number}.png", seed=number)
        save(tmp_path / "dog" / f"{number}.png", seed=10 + number)
    return tmp_path


def images(folder, **fields):
    return arch_jax.Images(source=f"images:{folder}", **({"batch": 2} | fields))


def test_images_and_labels_are_those_of_the_files(folder):
    corpus = images(folder).load()
    assert corpus.class_names == ("cat", "dog")
    assert corpus.facts["train_images"] == 8
    assert corpus.facts["validation_images"] == 2
    files = {
        kind: [np.asarray(PIL.Image.open(path)) / np.float32(255) for path in sorted((folder / kind).iterdir())]
        for kind in ("cat", "dog")
    }
    iterator, seen = iter(corpus.train(0)), set()
    for _ in range(4):
        batch = next(iterator)
        assert batch["images"].shape == (2, 4, 6, 3)
        for image, label in zip(batch["images"], batch["labels"]):
            places = [i for i, file in enumerate(files[("cat", "dog")[label]]) if np.abs(file - image).max() < 1e-6]
            assert len(places) == 1
            seen.add((int(label), places[0]))
    assert len(seen) == 8, "each training image once an epoch"


def test_every_mode_and_mixed_sizes(folder):
    save(folder / "cat" / "grey.jpg", "L")
    save(folder / "cat" / "palette.gif", "P")
    save(folder / "cat" / "clear.png", "RGBA")
    save(folder / "dog" / "nested" / "print.JPG", "CMYK", size=(9, 7))
    (folder / "dog" / "notes.txt").write_text("not an image")
    with pytest.raises(arch_jax.UsageError, match="of one size; expected resize"):
        images(folder).load()
    corpus = images(folder, resize=8).load()
    assert corpus.facts["train_images"] + corpus.facts["validation_images"] == 14
    iterator = iter(corpus.train(0))
    assert all(next(iterator)["images"].shape == (2, 8, 8, 3) for _ in range(6))


def test_grey_folders_have_one_channel(tmp_path):
    for number in range(3):
        save(tmp_path / "a" / f"{number}.png", "L")
        save(tmp_path / "b" / f"{number}.png", "1")
    assert images(tmp_path, validation=0.4).load().facts["channels"] == 1


def test_parts_of_its_own(tmp_path):
    for number in range(3):
        save(tmp_path / "train" / "a" / f"{number}.png", seed=number)
        save(tmp_path / "train" / "b" / f"{number}.png", seed=number)
    save(tmp_path / "val" / "b" / "0.png", seed=77)
    corpus = images(tmp_path).load()
    assert (corpus.facts["train_images"], corpus.facts["validation_images"]) == (6, 1)
    (batch,) = corpus.validation()
    assert batch["labels"][batch["weights"] > 0].tolist() == [1], "numbered as in training, though 'a' is not there"
    save(tmp_path / "val" / "bb" / "0.png")
    with pytest.raises(arch_jax.UsageError, match=r"class 'bb' of .*val' is not in 'train'.*'b'"):
        images(tmp_path).load()


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "Valid"), ("train", "val")])
def test_parts_by_any_of_their_usual_names(tmp_path, names):
    for number, kind in enumerate(("a", "b", "c")):
        save(tmp_path / names[0] / kind / "0.png", seed=number)
        save(tmp_path / names[1] / kind / "0.png", seed=number + 3)
    corpus = images(tmp_path).load()
    assert corpus.class_names == ("a", "b", "c")
    assert (corpus.facts["train_images"], corpus.facts["validation_images"]) == (3, 3)
    assert corpus.notes == ()


def test_test_images_are_left_alone_where_there_are_validation_images(tmp_path):
    for part, count in (("train", 3), ("val", 2), ("test", 1), ("extra", 4)):
        for number in range(count):
            for kind in ("a", "b"):
                save(tmp_path / part / kind / f"{number}.png", seed=number)
    corpus = images(tmp_path).load()
    assert (corpus.facts["train_images"], corpus.facts["validation_images"]) == (6, 4)
    assert corpus.notes == (f"'images:{tmp_path}' is read without 1 folder beside the parts, 2 test images",)
    tested = images(tmp_path, part="test").load()
    assert (tested.facts["train_images"], tested.facts["validation_images"]) == (6, 2)
    assert tested.notes == (f"'images:{tmp_path}' is read without 1 folder beside the parts, 4 validation images",)
    (tmp_path / "val").rename(tmp_path / "more")
    with pytest.raises(arch_jax.UsageError, match=r"part is 'validation', which '.*' does not have; expected 'test'"):
        images(tmp_path, part="validation").load()
    (tmp_path / "test").rename(tmp_path / "rest")
    with pytest.raises(arch_jax.UsageError, match=r"part is 'test', which .* expected none, as there is only 'train'"):
        images(tmp_path, part="test").load()
    with pytest.raises(
        arch_jax.UsageError, match=r"part is 'test', and '.*' has no parts, only classes; expected none"
    ):
        images(tmp_path / "train", part="test").load()
    with pytest.raises(
        arch_jax.UsageError, match=r"part is 'test', which source 'digits' does not have; expected none"
    ):
        arch_jax.Images(part="test").load()
    with pytest.raises(arch_jax.UsageError, match=r"part is 'validation', which source 'gate:xor' .* expected 'test'"):
        arch_jax.Images("gate:xor", part="validation", batch=2).load()


def test_leftovers_of_notebooks_and_archives_are_no_images(folder):
    """Validation images in a notebook's checkpoints were trained on; an archive's `__MACOSX` was a class."""
    clean = images(folder).load()
    for kind in ("cat", "dog"):
        for number in range(5):
            content = (folder / kind / f"{number}.png").read_bytes()
            for left in (f"{kind}/.ipynb_checkpoints/{number}-checkpoint.png", f"__MACOSX/{kind}/{number}.png"):
                (folder / left).parent.mkdir(parents=True, exist_ok=True)
                (folder / left).write_bytes(content)
        (folder / kind / "._0.png").write_bytes(b"Mac OS X resource fork")
    (folder / ".DS_Store").write_bytes(b"x")
    corpus = images(folder).load()
    assert corpus.facts == clean.facts
    assert corpus.class_names == ("cat", "dog")
    assert clean.notes == ()
    assert corpus.notes == (f"'images:{folder}' is read without 5 hidden files or folders, 1 folder of a tool",)


def test_linked_class_folders_are_followed(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    for kind in ("cat", "dog"):
        (linked / kind).symlink_to(folder / kind, target_is_directory=True)
    assert images(linked).load().facts["sha256"] == images(folder).load().facts["sha256"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_images_are_turned_as_their_exif_data_says(tmp_path, suffix):
    """As viewers show them, in each of the eight orientations; and as they are stored, where that is asked for."""
    smooth = np.add.outer(10 * np.arange(4), 30 * np.arange(6)).astype(np.uint8)
    for kind in ("a", "b"):
        for orientation in range(1, 9):
            exif = PIL.Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / kind / f"{orientation}{suffix}"
            path.parent.mkdir(exist_ok=True)
            PIL.Image.fromarray(smooth).save(path, exif=exif, quality=100)
    part = folders.read_folders(str(tmp_path)).train
    assert part.size is None
    turned, _ = part.take(np.arange(8))
    # The first row of EXIF's image is its top, right side ...; the first column its left, top ...
    flips = [smooth, smooth[:, ::-1], smooth[::-1, ::-1], smooth[::-1]]
    expected = [*flips, smooth.T, smooth.T[:, ::-1], smooth.T[::-1, ::-1], smooth.T[::-1]]
    for image, wanted in zip(turned, expected):
        assert image.shape[:2] == wanted.shape
        assert np.abs(image[..., 0].astype(int) - wanted).max() <= 12
    if suffix != ".tif":  # a part of the format, which Pillow always applies
        stored, _ = folders.read_folders(str(tmp_path), exif=False).train.take(np.arange(8))
        assert all(np.abs(image[..., 0].astype(int) - smooth).max() <= 12 for image in stored)
        hashes = {images(tmp_path, resize=8, exif=exif).load().facts["sha256"] for exif in (True, False)}
        assert len(hashes) == 2, "what is used differs"


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(arch_jax.UsageError, match=r"'.*nowhere' is not a folder"):
        images(folder / "nowhere").load()
    with pytest.raises(arch_jax.UsageError, match=r"source 'images:' names nothing to read; expected 'images:DIR'"):
        images("")
    with pytest.raises(arch_jax.UsageError, match=r"has 0 class folders"):
        images(folder / "cat").load()
    (folder / "bird").mkdir()
    with pytest.raises(arch_jax.UsageError, match=r"class folder '.*bird' has no images"):
        images(folder).load()
    (folder / "bird" / "1.png").write_bytes(b"not an image at all")
    with pytest.raises(arch_jax.UsageError, match=r"'.*bird.1.png' is not an image"):
        images(folder).load()
    PIL.Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(folder / "bird" / "1.png")
    with pytest.raises(arch_jax.UsageError, match=r"'.*bird.1.png' has more than 8 bits a channel"):
        images(folder).load()


def damage(path):
    path.write_bytes(path.read_bytes()[:60])  # the header is whole, the pixels are not


def test_a_damaged_image_is_named_before_the_first_step(folder):
    damage(folder / "cat" / "3.png")
    with pytest.raises(arch_jax.UsageError) as caught:
        images(folder).load()
    assert str(caught.value).startswith(f"'{folder / 'cat' / '3.png'}' is not an image, or damaged: ")
    assert str(caught.value).endswith("; remove what is damaged, or leave it out by data.damaged=skip")
    (folder / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(arch_jax.UsageError, match=r"3.png' .*, and 1 more of 10 files are damaged; remove"):
        images(folder).load()


def test_damaged_images_are_left_out_where_that_is_asked_for(folder):
    """What is hashed is what is used: a damaged file that is removed later locks no run out."""
    damage(folder / "cat" / "3.png")
    save(folder / "dog" / "9.png", size=(30, 20))
    damage(folder / "dog" / "9.png")  # its size and mode count nowhere
    corpus = images(folder, damaged="skip").load()
    assert corpus.notes == (f"'images:{folder}' is read without 2 damaged images",)
    (folder / "cat" / "3.png").unlink()
    (folder / "dog" / "9.png").unlink()
    for damaged in ("skip", "refuse", "unchecked"):
        clean = images(folder, damaged=damaged).load()
        assert (clean.facts, clean.notes) == (corpus.facts, ())
    for number in range(5):
        damage(folder / "dog" / f"{number}.png")
    with pytest.raises(arch_jax.UsageError, match=r"'dog' of .* has only damaged images"):
        images(folder, damaged="skip").load()
    (folder / "dog").rename(folder / "mice")
    for kind in ("cat", "dog"):
        save(folder / "train" / kind / "1.png")
    save(folder / "val" / "dog" / "1.png")
    damage(folder / "val" / "dog" / "1.png")
    with pytest.raises(arch_jax.UsageError, match=r"'validation' of .* has only damaged images"):
        images(folder, damaged="skip").load()
    with pytest.raises(arch_jax.UsageError, match=r"unknown value of damaged 'skipp'; the nearest is 'skip'"):
        images(folder, damaged="skipp")


def test_unchecked_images_are_decoded_when_they_are_needed(folder):
    damage(folder / "cat" / "3.png")
    corpus = images(folder, batch=8, damaged="unchecked").load()
    with pytest.raises(
        arch_jax.RunError, match=r"image '.*3.png' is damaged or gone: .*; a run goes on with the image"
    ):
        [*zip(range(2), corpus.train(0)), *corpus.validation()]


def test_large_folders_are_decoded_once(folder, tmp_path_factory, monkeypatch, capsys):
    data = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("ARCH_JAX_DATA", str(data))
    monkeypatch.setattr(inspection, "_KEPT", 9)
    looked = []
    inspect = inspection._inspect
    monkeypatch.setattr(inspection, "_inspect", lambda path, decode=True: looked.append(path) or inspect(path, decode))
    first = images(folder).load()
    assert len(looked) == 10
    assert images(folder).load().facts == first.facts
    assert len(looked) == 10
    damage(folder / "cat" / "3.png")
    for _ in range(2):
        assert images(folder, damaged="skip").load().notes == (f"'images:{folder}' is read without 1 damaged image",)
        assert looked[10:] == [folder / "cat" / "3.png"]
    (kept,) = data.glob("inspected/*.json")
    kept.write_text("{")  # a damaged one is made anew, in parts, so that little is lost where that is stopped
    monkeypatch.setattr(inspection, "_BETWEEN", 4)
    written = []
    monkeypatch.setattr(inspection.directories, "write_atomically", lambda path, content: written.append(content))
    capsys.readouterr()
    images(folder, damaged="skip").load()
    assert len(looked) == 21
    assert [len(json.loads(content)["files"]) for content in written] == [4, 8, 10]
    assert capsys.readouterr().err == f"decoding 10 images of '{folder}', once, to find damaged ones\n"


def test_parts_without_training_images_are_refused(tmp_path):
    for part in ("Valid", "test"):
        save(tmp_path / part / "a" / "1.png")
    with pytest.raises(arch_jax.UsageError, match=r"has no classes, only 'Valid', 'test'; expected a folder for each"):
        images(tmp_path).load()
    save(tmp_path / "train" / "1.png")
    with pytest.raises(arch_jax.UsageError, match=r"has no classes, only"):
        images(tmp_path).load()
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "train" / "b" / "1.png")
    (tmp_path / "Valid" / "a").rename(tmp_path / "a")
    with pytest.raises(arch_jax.UsageError, match=r"Valid' has no class folders; expected those of 'train'"):
        images(tmp_path).load()
