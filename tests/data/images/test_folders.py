"""Images in a folder a class: every format and mode, what is held out, and what is refused by name."""

import numpy as np
import PIL.Image
import pytest

import arch_jax


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


def test_a_damaged_image_is_named(folder):
    path = folder / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:60])  # the header is whole, the pixels are not
    corpus = images(folder, batch=8, validation=0.2).load()
    with pytest.raises(arch_jax.RunError, match=r"image '.*3.png' is damaged or gone"):
        [*zip(range(2), corpus.train(0)), *corpus.validation()]
