"""MindSpore's data sets: order, sharding, reproducibility, augmentation switches, bad images."""

import contextlib
import dataclasses
import io
import os

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import nn
from mindspore.dataset import vision
from PIL import Image

from src.common.cli import RunError
from src.data.batches import BAD_LABEL, Loading, Sharding
from src.data.image_folder import read_image_folder
from src.data.training_batches import Sampling, Steps
from src.dataset import create_dataset, create_training_stream
from src.images.augment import Augmentation
from src.images.bad_images import BadImages, ImageError
from src.images.preprocess import Preprocess, load_image
from src.runtime.device import prepare_device
from src.training.step import StepSettings, TrainStep

SIDE = 32
SMALL = Preprocess.for_image_size(SIDE)
PLAIN = Augmentation(random_crop=False, flip=False, color_jitter=0.0)


def picture(seed, width=48, height=40):
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """53 JPEGs in 3 classes."""
    root = tmp_path_factory.mktemp("pictures")
    for index in range(53):
        path = root / f"class{index % 3}"
        path.mkdir(exist_ok=True)
        (path / f"{index:02}.jpg").write_bytes(jpeg(index))
    return read_image_folder(str(root))


def batches(dataset):
    return list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))


def images_of(dataset):
    return np.concatenate([images for images, _ in batches(dataset)])


def equal(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, other in zip(first, second) for a, b in zip(one, other)
    )


class TestEvaluation:
    def test_every_image_once_in_order_with_its_label(self, folder):
        dataset = create_dataset(folder, False, 16, loading=Loading(SMALL))
        result = batches(dataset)
        assert dataset.get_dataset_size() == 4
        assert [len(labels) for _, labels in result] == [16, 16, 16, 5]
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in result]), folder.labels)
        images = np.concatenate([images for images, _ in result])
        assert images.dtype == np.float32 and images.shape == (53, 3, SIDE, SIDE)
        for index in range(len(folder)):
            np.testing.assert_array_equal(images[index], load_image(folder.full_path(index), SMALL))

    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_the_path_of_the_folder_will_do(self, folder, interpolation):
        preprocess = Preprocess(SIDE, 40, interpolation)
        images = images_of(create_dataset(folder.root, False, 7, loading=Loading(preprocess)))
        np.testing.assert_array_equal(images[52], load_image(folder.full_path(52), preprocess))

    def test_mindspores_own_operations_give_the_same_bits(self, folder):
        paths = [folder.full_path(index) for index in range(len(folder))]
        theirs = ds.GeneratorDataset([(np.fromfile(path, np.uint8),) for path in paths], ["image"], shuffle=False)
        operations = [
            vision.Decode(),
            vision.Resize(SMALL.resize, vision.Inter.PILCUBIC),
            vision.CenterCrop(SIDE),
            vision.Normalize([127.5] * 3, [127.5] * 3),
            vision.HWC2CHW(),
        ]
        theirs = [row[0] for row in batches(theirs.map(operations, "image"))]
        np.testing.assert_array_equal(images_of(create_dataset(folder, False, loading=Loading(SMALL))), theirs)

    def test_ranks_share_the_images_without_duplicates(self, folder):
        shards = [
            np.concatenate(
                [labels for _, labels in batches(create_dataset(folder, False, 8, 4, rank, loading=Loading(SMALL)))]
            )
            for rank in range(4)
        ]
        assert [len(shard) for shard in shards] == [14, 13, 13, 13]
        for rank, shard in enumerate(shards):
            np.testing.assert_array_equal(shard, folder.labels[rank::4])

    def test_iterating_twice_gives_the_same(self, folder):
        dataset = create_dataset(folder, False, 16, loading=Loading(SMALL))
        assert equal(batches(dataset), batches(dataset))

    def test_pixels_for_a_network_that_normalises(self, folder):
        pixels = images_of(create_dataset(folder, False, 16, loading=Loading(SMALL, normalised=False)))
        assert pixels.dtype == np.uint8 and pixels.shape == (53, 3, SIDE, SIDE)
        images = images_of(create_dataset(folder, False, 16, loading=Loading(SMALL)))
        np.testing.assert_allclose((pixels - 127.5) / 127.5, images, atol=1e-6)


class TestTraining:
    def test_shapes_and_the_dropped_tail(self, folder):
        dataset = create_dataset(folder, True, 16, loading=Loading(SMALL))
        result = batches(dataset)
        assert dataset.get_dataset_size() == len(result) == 3
        for images, labels in result:
            assert images.shape == (16, 3, SIDE, SIDE) and images.dtype == np.float32
            assert labels.shape == (16,) and labels.dtype == np.int32

    @pytest.mark.parametrize("workers", [1, 2])
    def test_one_seed_gives_the_same_batches(self, folder, workers):
        loading = Loading(SMALL, num_workers=workers)
        runs = [batches(create_dataset(folder, True, 8, loading=loading, sampling=Sampling(5))) for _ in "ab"]
        assert equal(*runs)

    @pytest.mark.parametrize("policy", ["none", "randaugment"])
    def test_batches_depend_on_the_epoch_not_on_what_was_drawn_before(self, folder, policy):
        sampling = Sampling(augmentation=Augmentation(auto_augment=policy))
        settings = {"loading": Loading(SMALL, num_workers=2), "sampling": sampling}
        alone = batches(create_dataset(folder, True, 8, epoch=2, **settings))
        for epoch in range(3):
            after_others = batches(create_dataset(folder, True, 8, epoch=epoch, **settings))
        assert equal(alone, after_others)

    def test_the_number_of_threads_changes_nothing(self, folder):
        runs = [
            batches(create_dataset(folder, True, 8, loading=Loading(SMALL, num_workers=count))) for count in (1, 2, 7)
        ]
        assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])

    def test_pixels_for_a_device_that_normalises(self, folder):
        floats = batches(create_dataset(folder, True, 8, loading=Loading(SMALL)))
        pixels = batches(create_dataset(folder, True, 8, loading=Loading(SMALL, normalised=False)))
        # MindSpore lets the device be chosen before it first computes, and other tests choose it.
        prepare_device("CPU")
        settings = StepSettings(mean=SMALL.mean, std=SMALL.std)
        step = TrainStep(nn.Dense(1, 1), None, nn.SGD(nn.Dense(1, 1).trainable_params()), settings)
        for (images, _), (planes, _) in zip(floats, pixels):
            assert planes.dtype == np.uint8
            np.testing.assert_allclose(step.normalise(ms.Tensor(planes)).asnumpy(), images, rtol=0, atol=1e-6)
            assert step.normalise(ms.Tensor(images)).dtype == ms.float32

    def test_another_seed_or_epoch_gives_others(self, folder):
        runs = [
            batches(create_dataset(folder, True, 8, epoch=epoch, loading=Loading(SMALL), sampling=Sampling(seed)))
            for seed, epoch in ((5, 0), (6, 0), (5, 1))
        ]
        assert not equal(runs[0], runs[1]) and not equal(runs[0], runs[2]) and not equal(runs[1], runs[2])

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("policy", ["none", "autoaugment"])
    def test_skipping_gives_exactly_the_batches_that_are_left(self, folder, workers, policy):
        settings = Loading(SMALL, num_workers=workers), Sampling(2, Augmentation(auto_augment=policy))
        whole = batches(create_dataset(folder, True, 8, epoch=3, loading=settings[0], sampling=settings[1]))
        for skipped in (1, 5):
            dataset = create_training_stream(folder, Sharding(8), Steps(6, 4, 3 * 6 + skipped), *settings)
            assert dataset.get_dataset_size() == 6 - skipped
            assert equal(batches(dataset), whole[skipped:])

    def test_labels_follow_their_images(self, folder):
        plain = [np.asarray(picture(i).resize((SIDE, SIDE), Image.Resampling.BILINEAR), float) for i in range(53)]
        dataset = create_dataset(
            folder, True, 8, loading=Loading(SMALL, normalised=False), sampling=Sampling(augmentation=PLAIN)
        )
        for images, labels in batches(dataset):
            for image, label in zip(images.transpose(0, 2, 3, 1), labels):
                nearest = int(np.argmin([np.abs(image - other).mean() for other in plain]))
                assert nearest % 3 == label

    def test_ranks_augment_differently(self, tmp_path):
        (tmp_path / "a").mkdir()
        for index in range(8):
            (tmp_path / "a" / f"{index}.jpg").write_bytes(jpeg(0))
        first, second = (
            images_of(create_dataset(str(tmp_path), True, 4, 2, rank, loading=Loading(SMALL))) for rank in (0, 1)
        )
        assert not np.array_equal(first, second)

    def test_workers_augment_differently(self, tmp_path):
        (tmp_path / "a").mkdir()
        for index in range(8):
            (tmp_path / "a" / f"{index}.jpg").write_bytes(jpeg(0))
        images = images_of(create_dataset(str(tmp_path), True, 8, loading=Loading(SMALL, num_workers=2)))
        assert len({image.tobytes() for image in images}) == 8

    def test_fewer_images_than_a_batch(self, folder):
        with pytest.raises(RunError, match="53 images do not fill a batch of 32 on 2 devices"):
            create_dataset(folder, True, 32, 2)

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 1}, {"rank": -1}, {"device_num": 0}])
    def test_numbers_that_make_no_sense(self, folder, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            create_dataset(folder, True, **wrong)


class TestAugmentation:
    """Each switch, seen on one image many times."""

    def crops(self, tmp_path, **augment):
        (tmp_path / "a").mkdir()
        for index in range(24):
            (tmp_path / "a" / f"{index}.jpg").write_bytes(jpeg(7))
        sampling = Sampling(augmentation=dataclasses.replace(PLAIN, **augment))
        dataset = create_dataset(str(tmp_path), True, 24, loading=Loading(SMALL, normalised=False), sampling=sampling)
        return images_of(dataset).transpose(0, 2, 3, 1)

    def test_all_off_gives_the_whole_image(self, tmp_path):
        crops = self.crops(tmp_path)
        assert len({crop.tobytes() for crop in crops}) == 1
        whole = np.asarray(picture(7).resize((SIDE, SIDE), Image.Resampling.BILINEAR), float)
        assert np.abs(crops[0] - whole).mean() < 6

    def test_flip_gives_the_image_and_its_mirror_image(self, tmp_path):
        crops = self.crops(tmp_path, flip=True)
        kinds = {crop.tobytes(): crop for crop in crops}
        assert len(kinds) == 2
        one, other = kinds.values()
        np.testing.assert_array_equal(one, other[:, ::-1])

    def test_jitter_keeps_the_shapes_and_changes_the_colours(self, tmp_path):
        crops = self.crops(tmp_path, color_jitter=0.4)
        assert len({crop.tobytes() for crop in crops}) > 20
        means = crops.reshape(24, -1).mean(axis=1)
        assert means.std() > 5

    def test_random_crops_differ(self, tmp_path):
        assert len({crop.tobytes() for crop in self.crops(tmp_path, random_crop=True)}) > 20

    def test_a_mild_crop_stays_near_the_whole_image(self, tmp_path):
        whole = np.asarray(picture(7).resize((SIDE, SIDE), Image.Resampling.BILINEAR), float)
        crops = self.crops(tmp_path, random_crop=True, crop_scale_min=0.95, crop_aspect_max=1.01)
        assert np.abs(crops - whole).mean() < 25

    @pytest.mark.parametrize("policy", ["randaugment", "autoaugment"])
    def test_policies_change_the_images(self, tmp_path, policy):
        assert len({crop.tobytes() for crop in self.crops(tmp_path, auto_augment=policy)}) > 10


class TestStream:
    def stream(self, folder, first=0, mix=None):
        return create_training_stream(folder, Sharding(8), Steps(6, 3, first), Loading(SMALL), mix=mix)

    def test_epochs_follow_each_other_as_create_dataset_gives_them(self, folder):
        dataset = self.stream(folder)
        assert dataset.get_dataset_size() == 18
        expected = [
            row
            for epoch in range(3)
            for row in batches(create_dataset(folder, True, 8, epoch=epoch, loading=Loading(SMALL)))
        ]
        assert equal(batches(dataset), expected)

    @pytest.mark.parametrize("first", [1, 6, 11, 17])
    def test_a_resumed_stream_is_the_rest(self, folder, first):
        assert equal(batches(self.stream(folder, first)), batches(self.stream(folder))[first:])

    def test_mix_is_told_where_it_is(self, folder):
        seen = []

        def mix(images, labels, epoch, number):
            seen.append((epoch, number))
            return images, np.full_like(labels, 9)

        result = batches(self.stream(folder, 4, mix=mix))
        assert seen == [(0, 4), (0, 5)] + [(epoch, number) for epoch in (1, 2) for number in range(6)]
        assert all((labels == 9).all() for _, labels in result)


class TestBadImages:
    @pytest.fixture
    def damaged(self, tmp_path):
        """24 images, of which numbers 3 (text), 10 (truncated) and 17 (damaged tables) cannot be decoded."""
        (tmp_path / "a").mkdir()
        for index in range(24):
            data = bytearray(jpeg(index))
            if index == 3:
                data = b"this is a text"
            if index == 10:
                data = data[: len(data) // 2]
            if index == 17:
                position = data.find(b"\xff\xc4")
                data[position + 5 : position + 21] = b"\xff" * 16
            (tmp_path / "a" / f"{index:02}.jpg").write_bytes(bytes(data))
        return read_image_folder(str(tmp_path))

    def test_training_replaces_counts_and_names_each_once(self, damaged, capsys):
        bad = BadImages(len(damaged), 0.5)
        for epoch in (0, 1):
            result = batches(create_dataset(damaged, True, 8, epoch=epoch, loading=Loading(SMALL, bad=bad)))
            assert [images.shape for images, _ in result] == [(8, 3, SIDE, SIDE)] * 3
        assert sorted(os.path.basename(path) for path in bad.sentences) == ["03.jpg", "10.jpg", "17.jpg"]
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert len(lines) == 3 and all("another image takes its place" in line for line in lines)

    def test_training_fails_above_the_share_and_says_what_lists_them(self, damaged, capsys):
        for name in ("05.jpg", "20.jpg"):
            with open(os.path.join(damaged.root, "a", name), "wb") as file:
                file.write(b"no image")
        bad = BadImages(len(damaged), 0.05, root="my photos")
        with pytest.raises(RunError) as error, bad.as_sentence():
            batches(create_dataset(damaged, True, 8, loading=Loading(SMALL, bad=bad)))
        sentence = "4 of 24 images cannot be used, more than the share of 0.05 that --max_bad_images allows and more "
        sentence += "than the 3 that are always allowed; `python -m src.data.image_folder 'my photos'` lists them all; "
        assert str(error.value).startswith(sentence + "the first: ")
        assert ".jpg" in str(error.value)
        assert capsys.readouterr().err.count("warning: ") == 4

    @pytest.mark.parametrize("share", [0.001, 0.05])
    def test_three_bad_images_end_no_training_however_small_the_folder(self, damaged, share):
        bad = BadImages(len(damaged), share)
        with bad.as_sentence():
            batches(create_dataset(damaged, True, 8, loading=Loading(SMALL, bad=bad)))
        assert len(bad) == 3

    def test_evaluation_counts_them_as_wrong(self, damaged, capsys):
        bad = BadImages(len(damaged))
        result = batches(create_dataset(damaged, False, 8, loading=Loading(SMALL, bad=bad)))
        labels = np.concatenate([labels for _, labels in result])
        assert np.flatnonzero(labels == BAD_LABEL).tolist() == [3, 10, 17] and len(labels) == 24
        assert len(bad) == 3 and capsys.readouterr().err.count("it counts as wrong") == 3

    def test_evaluation_leaves_them_out_where_asked(self, damaged, capsys):
        bad = BadImages(len(damaged), skip=True)
        result = batches(create_dataset(damaged, False, 8, loading=Loading(SMALL, bad=bad)))
        labels = np.concatenate([labels for _, labels in result])
        assert [len(images) for images, _ in result] == [7, 7, 7] and (labels == 0).all()
        assert len(bad) == 3 and capsys.readouterr().err.count("it is left out") == 3

    def test_a_file_that_cannot_be_read_is_a_bad_image(self, folder, tmp_path, capsys):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.jpg").write_bytes(jpeg(1))
        (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "missing.jpg")
        for do_train, consequence in ((False, "it counts as wrong"), (True, "another image takes its place")):
            ((images, labels),) = batches(create_dataset(str(tmp_path), do_train, 2, loading=Loading(SMALL)))
            assert labels.tolist() == ([0, 0] if do_train else [0, BAD_LABEL])
            sentence = f"warning: {tmp_path}/a/2.jpg: there is no such file or directory; {consequence}\n"
            assert capsys.readouterr().err == sentence

    def test_evaluation_fails_above_the_share(self, damaged):
        bad = BadImages(len(damaged), 0.0)
        with pytest.raises(RunError, match="1 of 24 images cannot be used"), bad.as_sentence():
            batches(create_dataset(damaged, False, 8, loading=Loading(SMALL, bad=bad)))

    def test_which_images_end_a_run_is_the_same_every_time(self, damaged):
        sentences = set()
        for workers in (1, 2, 5) * 3:
            bad = BadImages(len(damaged), 0.0)
            with pytest.raises(RunError) as error, bad.as_sentence():
                batches(create_dataset(damaged, True, 8, loading=Loading(SMALL, bad=bad, num_workers=workers)))
            sentences.add(str(error.value))
        assert len(sentences) == 1 and sentences.pop().startswith("1 of 24 images cannot be used")

    def test_a_failure_that_mindspore_swallows_is_not_lost(self):
        bad = BadImages(10, 0.0)
        with pytest.raises(RunError, match="1 of 10 images"), bad.as_sentence():
            with contextlib.suppress(RunError):
                bad.add("a.jpg", ImageError("a.jpg: broken"), "")

    def test_nothing_but_bad_images_where_any_number_is_allowed(self, tmp_path):
        (tmp_path / "a").mkdir()
        for index in range(8):
            (tmp_path / "a" / f"{index}.jpg").write_bytes(b"no image")
        bad = BadImages(8)
        with pytest.raises(RunError, match="none of its 8 images can be decoded"), bad.as_sentence():
            batches(create_dataset(str(tmp_path), True, 4, loading=Loading(SMALL, bad=bad)))

    def test_nothing_but_bad_images(self, tmp_path):
        (tmp_path / "a").mkdir()
        for index in range(8):
            (tmp_path / "a" / f"{index}.jpg").write_bytes(b"no image")
        bad = BadImages(8, 0.999)
        with pytest.raises(RunError, match="8 of 8 images cannot be used"), bad.as_sentence():
            batches(create_dataset(str(tmp_path), True, 4, loading=Loading(SMALL, bad=bad)))


def test_more_threads_than_the_machine_has_cores_are_cut_down(folder):
    assert len(batches(create_dataset(folder, True, 8, loading=Loading(SMALL, num_workers=500)))) == 6


@pytest.mark.parametrize(
    ("do_train", "kind"), [(True, "missing"), (False, "missing"), (True, "empty"), (False, "empty")]
)
def test_a_folder_that_is_none(tmp_path, do_train, kind):
    with pytest.raises(RunError, match="no such folder" if kind == "missing" else "no class folders"):
        create_dataset(str(tmp_path / "missing") if kind == "missing" else str(tmp_path), do_train)
