import pytest

from kmt.kernel import Version


def test_releases_sort_as_people_do():
    texts = ["5.10.0-9-amd64", "5.10.0-30-cloud-amd64", "6.1.9", "6.1.10", "7.3-rc2", "7.3", "7.3.4+deb13-cloud-amd64"]
    assert sorted(texts, key=Version.parse) == texts


def test_series():
    assert Version.parse("6.12.117+deb13.1-cloud-amd64").series == "6.12"
    assert Version.parse("v6.6").series == "6.6"


@pytest.mark.parametrize("text", ["", "six", "6", "6.x", "٦.١"])
def test_what_is_no_version_says_so(text):
    with pytest.raises(ValueError, match="no kernel version"):
        Version.parse(text)
