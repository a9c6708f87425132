"""ImageNet's class names against the lists that timm and torchvision carry."""

import re

import pytest

from src.data.imagenet import class_names_for, read_classes

# Names that share no word with WordNet's, which stand beside them.
OTHER_WORDS = {
    "rooster": "cock",
    "jeans": "jean, blue jean, denim",
    "shipwreck": "wreck",
    "baguette": "French loaf",
    "pot pie": "potpie",
}


def test_numbers_are_those_of_timms_list_in_order():
    from benchmarks.peers import timm

    listed = timm.data.ImageNetInfo("imagenet-1k").label_names()
    ours = [number for number, _ in read_classes()]
    assert ours == list(listed)
    assert ours == sorted(ours), "labels follow the sorted class folders"


@pytest.mark.parametrize("peer", ["timm", "torchvision"])
def test_names_are_those_of_the_same_things_in_the_same_order(peer):
    """Each shares a word with the peer's, of which timm's are WordNet's and torchvision's their first."""
    from benchmarks.peers import timm, torchvision

    if peer == "timm":
        listed = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    else:
        listed = torchvision.models.EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    names = class_names_for(1000)
    strangers = {name: there for name, there in zip(names, listed) if not words(name) & words(there)}
    if peer == "timm":
        assert strangers == OTHER_WORDS
    else:
        assert len(strangers) < 30, strangers


def words(text):
    return set(re.findall("[a-z]+", text.lower()))


def test_names_tell_the_classes_apart():
    names = class_names_for(1000)
    assert len(set(names)) == 1000 and all(name == name.strip() and name for name in names)
    assert (names[0], names[1], names[207], names[999]) == ("tench", "goldfish", "golden retriever", "toilet tissue")


def test_only_networks_of_imagenet_get_them():
    assert class_names_for(999) is None and class_names_for(10) is None
