import io
import itertools
import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from arch_jax.data import Images
from arch_jax.data.images import tfds as tfds_source
from arch_jax.errors import RunError, UsageError


def png(pixels: np.ndarray) -> io.BytesIO:
    """An image as a file: TFDS needs TensorFlow to encode an array, and takes files as they are."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


class _Images(tfds.core.GeneratorBasedBuilder):
    """Image i is of the value i everywhere; its label is i % 3."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (5, 4, 3)
    COUNTS = {"train": 30, "test": 7}  # noqa: RUF012

    def _info(self):
        label = tfds.features.ClassLabel(names=["cat", "dog", "emu"])
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=self.SHAPE), "label": label})
        return tfds.core.DatasetInfo(builder=self, description="For a test.", features=features)

    def _split_generators(self, dl_manager):
        firsts = dict(zip(self.COUNTS, itertools.accumulate([0, *self.COUNTS.values()])))
        return {split: self._generate_examples(firsts[split], count, split) for split, count in self.COUNTS.items()}

    def _generate_examples(self, first, count, split):
        for i in range(first, first + count):
            yield i, {"image": png(self.image(i)), "label": self.label(i, split)}

    def image(self, i):
        return np.full((5, 4, 3), i, np.uint8)

    def label(self, i, split):
        return i % 3


class ArchTiny(_Images):
    pass


class ArchUnsplit(_Images):
    COUNTS = {"train": 30}  # noqa: RUF012


class ArchHiddenTest(_Images):
    """As ImageNet: the test part's labels are not known."""

    COUNTS = {"train": 12, "validation": 5, "test": 7}  # noqa: RUF012

    def label(self, i, split):
        return -1 if split == "test" else i % 3


class ArchUnlabelled(_Images):
    """One training image has no label."""

    def label(self, i, split):
        return -1 if i == 4 else i % 3


class ArchManySizes(_Images):
    SHAPE = (None, None, 3)

    def image(self, i):
        return np.full((5 + i % 4, 9 - i % 3, 3) if i % 5 else (6, 6), i, np.uint8)  # some in grey


class ArchConfigured(_Images):
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version="1.0.0") for name in ("plain", "small")]  # noqa: RUF012


class ArchNoTrain(_Images):
    COUNTS = {"holdout": 4}  # noqa: RUF012


class ArchTexts(_Images):
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description="For a test.", features=features)

    def _generate_examples(self, first, count, split):
        yield from ((i, {"text": str(i)}) for i in range(first, first + count))


class ArchNeedsTensorflow(_Images):
    def _split_generators(self, dl_manager):
        raise ValueError("In <Image>") from ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")


class ArchOffline(_Images):
    def _split_generators(self, dl_manager):
        raise ConnectionError("Failed to resolve 'example.org'\nMax retries exceeded")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test prepares its data sets in a folder of its own."""
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("ARCH_JAX_DATA", str(tmp_path))
    return tmp_path


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def values(batches):
    return [round(float(image[0, 0, 0]) * 255) for batch in batches for image in batch["images"]]


def test_a_data_set_is_prepared_once_and_read(folder, capsys):
    corpus = Images("tfds:arch_tiny", batch=10).load()
    assert (folder / "tensorflow_datasets" / "arch_tiny" / "1.0.0" / "dataset_info.json").exists()
    facts = json.loads(json.dumps(corpus.facts))
    assert (facts["source"], facts["train_images"], facts["validation_images"]) == ("tfds:arch_tiny", 30, 7)
    assert (facts["height"], facts["width"], facts["channels"]) == (5, 4, 3)
    assert len(facts["sha256"]) == 64
    assert (corpus.classes, corpus.class_names) == (3, ("cat", "dog", "emu"))
    epoch = take(corpus.train(0), 3)
    assert sorted(values(epoch)) == list(range(30))
    assert all((batch["images"] == batch["images"][:, :1, :1, :1]).all() for batch in epoch)
    assert [int(label) for batch in epoch for label in batch["labels"]] == [value % 3 for value in values(epoch)]
    assert sorted(values(corpus.validation())[:7]) == list(range(30, 37))
    assert np.concatenate([batch["weights"] for batch in corpus.validation()]).tolist() == [1] * 7 + [0] * 3
    assert {name: (a.shape, a.dtype.name) for name, a in epoch[0].items()} == corpus.shapes
    before = (folder / "tensorflow_datasets" / "arch_tiny" / "1.0.0" / "dataset_info.json").stat().st_mtime_ns
    assert Images("tfds:arch_tiny", batch=10).load().facts == corpus.facts
    assert (folder / "tensorflow_datasets" / "arch_tiny" / "1.0.0" / "dataset_info.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""


def test_training_is_deterministic_resumable_and_shardable():
    corpus = Images("tfds:arch_tiny", batch=8).load()
    once = take(corpus.train(3), 12)
    assert all(map(equal, once, take(Images("tfds:arch_tiny", batch=8).load().train(3), 12)))
    iterator = corpus.train(3)
    take(iterator, 5)
    restored = corpus.train(3)
    restored.set_state(json.loads(json.dumps(iterator.get_state())))
    assert all(map(equal, take(restored, 7), once[5:]))
    shards = [take(corpus.train(3, (i, 2)), 12) for i in range(2)]
    for batch, *parts in zip(once, *shards):
        assert equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


def test_nothing_is_read_before_it_is_asked_for():
    corpus = Images("tfds:arch_tiny", batch=8).load()
    part = corpus._found.train
    read = []
    original = type(part.source).__getitems__

    class Watched:
        def __len__(self):
            return len(part.source)

        def __getitems__(self, keys):
            read.extend(keys)
            return original(part.source, keys)

    watched = type(part)(Watched(), part.features, part.where, part.size, part.channels, part.classes)
    assert len(watched) == 30
    assert read == []
    image, label = watched[4]
    assert (image.shape, image.dtype, label) == ((5, 4, 3), np.uint8, int(image[0, 0, 0]) % 3)
    assert read == [4]
    assert watched.labels().tolist() == [watched[i][1] for i in range(30)]
    with pytest.raises(IndexError):
        watched[30]


def test_without_a_test_part_a_share_of_each_class_is_held_out():
    corpus = Images("tfds:arch_unsplit", batch=6, validation=0.2).load()
    (held,) = corpus.validation()
    assert np.bincount(held["labels"]).tolist() == [2, 2, 2]
    assert sorted([*values([held]), *values(take(corpus.train(0), 4))]) == list(range(30))


def test_a_share_of_the_images_is_of_each_class_alike():
    corpus = Images("tfds:arch_tiny", batch=6, train_share=0.2).load()
    (batch,) = take(corpus.train(0), 1)
    assert (corpus.facts["train_images"], corpus.facts["validation_images"]) == (6, 7)
    assert np.bincount(batch["labels"]).tolist() == [2, 2, 2]


def test_a_test_part_without_labels_is_passed_over():
    corpus = Images("tfds:arch_hidden_test", batch=4).load()
    assert corpus.facts["validation_images"] == 5
    assert sorted(values(corpus.validation())[:5]) == list(range(12, 17))
    assert Images("tfds:arch_hidden_test", batch=4, part="validation").load().facts == corpus.facts
    with pytest.raises(
        UsageError, match=r"part is 'test', and data set .* 'train', 'validation'.*; expected one of them"
    ):
        Images("tfds:arch_hidden_test", batch=4, part="test").load()


def test_a_training_image_without_a_label_is_named():
    with pytest.raises(
        RunError, match=r"image \d+ of split .train. of .* has label -1, which is out of range; expected 0 to 2"
    ):
        take(Images("tfds:arch_unlabelled", batch=10).load().train(0), 3)


def test_images_of_many_sizes_need_resize():
    with pytest.raises(UsageError, match=r"'tfds:arch_many_sizes' does not say that its images are of one size; "):
        Images("tfds:arch_many_sizes", batch=10).load()
    corpus = Images("tfds:arch_many_sizes", batch=10, resize=6, pad=1).load()
    batches = take(corpus.train(0), 3)
    assert batches[0]["images"].shape == (10, 8, 8, 3)
    inner = np.concatenate([batch["images"][:, 1:-1, 1:-1] for batch in batches])
    assert sorted(np.rint(inner[:, 0, 0, 0] * 255)) == list(range(30))
    assert inner == pytest.approx(np.broadcast_to(inner[:, :1, :1, :1], inner.shape), abs=1e-5)


def test_a_configuration_is_chosen_by_name():
    corpus = Images("tfds:arch_configured/small", batch=6).load()
    assert corpus.facts["train_images"] == 30
    with pytest.raises(
        UsageError, match="unknown configuration of data set 'arch_configured' 'smal'; the nearest is 's"
    ):
        Images("tfds:arch_configured/smal").load()
    with pytest.raises(
        UsageError, match="data set 'arch_tiny' has no configurations, so not 'small'; expected 'tfds:a"
    ):
        Images("tfds:arch_tiny/small").load()


def test_the_folder_named_by_tfds_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    Images("tfds:arch_tiny", batch=6).load()
    assert (tmp_path / "elsewhere" / "arch_tiny" / "1.0.0").is_dir()
    assert not (tmp_path / "tensorflow_datasets").exists()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("arch_tyni", UsageError, "unknown data set of TensorFlow Datasets 'arch_tyni'; the nearest"),
        ("mnits", UsageError, r"unknown data set of TensorFlow Datasets 'mnits'; the nearest are .*'mnist'"),
        (
            "huggingface:x/y",
            UsageError,
            "'huggingface:x/y' names no data set of TensorFlow Datasets; expected 'tfds:NAME'",
        ),
        ("../../etc", UsageError, "names no data set of TensorFlow Datasets"),
        ("arch_tiny:9.9.9", RunError, "cannot open data set 'arch_tiny:9.9.9': .*9.9.9, only: 1.0.0"),
        (
            "arch_texts",
            UsageError,
            r"'arch_texts' has the features text \(Text\); expected 'image' \(Image\) and 'label'",
        ),
        ("arch_no_train", UsageError, "has the splits 'holdout'; expected 'train' among them"),
        ("arch_needs_tensorflow", UsageError, r"it needs TensorFlow, which is missing; pip install arch-jax\[tfds\]"),
        ("arch_offline", RunError, r"cannot prepare data set 'arch_offline' in '.*': Failed to resolve 'example.org'$"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(name, error, says):
    with pytest.raises(error, match=says) as caught:
        Images(f"tfds:{name}", batch=2).load()
    assert "\n" not in str(caught.value)


def test_fewer_images_than_a_batch_is_one_sentence():
    with pytest.raises(UsageError, match="has 30 training images, and batch is 31; expected at most batch 30"):
        Images("tfds:arch_tiny", batch=31).load()


def test_a_damaged_file_is_one_sentence(folder):
    corpus = Images("tfds:arch_tiny", batch=30).load()
    (file,) = (folder / "tensorflow_datasets" / "arch_tiny" / "1.0.0").glob("*train*")
    content = bytearray(file.read_bytes())
    for at in [match.start() for match in re.finditer(b"IDAT", content)]:
        content[at + 6 : at + 16] = bytes(10)
    file.write_bytes(content)
    with pytest.raises(RunError) as caught:
        corpus.train(0).__next__()
    assert "\n" not in str(caught.value)
    assert "split 'train' of data set 'arch_tiny'" in str(caught.value)


def test_the_hash_is_of_the_content(folder, monkeypatch):
    before = Images("tfds:arch_tiny", batch=6).load().facts["sha256"]
    (file,) = (folder / "tensorflow_datasets" / "arch_tiny" / "1.0.0").glob("*test*")
    content = file.read_bytes()
    assert before != tfds_source._hash([file])
    first = tfds_source._hash([file])
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert tfds_source._hash([file]) != first
    monkeypatch.setattr(tfds_source, "_HASHED_WHOLE", 10)  # a data set too large to be hashed whole
    monkeypatch.setattr(tfds_source, "_HASHED_START", 100)
    start = tfds_source._hash([file])
    file.write_bytes(content)
    assert tfds_source._hash([file]) == start
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert tfds_source._hash([file]) != start


def test_files_in_another_format_are_one_sentence(folder):
    Images("tfds:arch_tiny", batch=6).load()
    path = folder / "tensorflow_datasets" / "arch_tiny" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    for file in path.parent.glob("*.array_record*"):
        file.rename(file.with_name(file.name.replace("array_record", "tfrecord")))
    with pytest.raises(UsageError, match=r"is not in the format array_record, the only one .*; move it away") as caught:
        Images("tfds:arch_tiny", batch=6).load()
    assert "\n" not in str(caught.value)


def test_where_tensorflow_came_along_it_is_kept_off_the_accelerators(monkeypatch):
    class Config:
        asked: list = []  # noqa: RUF012

        def set_visible_devices(self, devices, kind):
            self.asked.append((devices, kind))
            raise RuntimeError("Visible devices cannot be modified after being initialized")

    module = type(sys)("tensorflow")
    module.config = Config()
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    tfds_source._hide_accelerators()
    assert ([], "GPU") in Config.asked


def test_reading_a_prepared_data_set_imports_no_tensorflow(folder):
    """In a process of its own, which does not know the builder: the files on disk say enough."""
    Images("tfds:arch_tiny", batch=6).load()
    code = """
    import sys
    from arch_jax.data import Images
    corpus = Images("tfds:arch_tiny", batch=6).load()
    next(corpus.train(0)), list(corpus.validation())
    print(corpus.facts["sha256"], "tensorflow" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [Images("tfds:arch_tiny", batch=6).load().facts["sha256"], "False"]
