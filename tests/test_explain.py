"""The pages of `groupwise explain`: their numbers against independent ones, and the pages in a browser."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise import explain
from groupwise.cli import main
from groupwise.errors import UserError
from groupwise.explain import connectivity, page_forms, page_grouped, page_separable, page_shuffle
from groupwise.explain.page import Page, source_line
from groupwise.layers import GroupedConv2D
from groupwise.ops import grouped_conv2d
from groupwise.report.html_page import literal
from groupwise.rewrite.kernels import dense_of_separable
from groupwise.spec import ConvSpec
from groupwise.texts import printable
from tests import browser

SMALL_NAMES = {"grouped": "resnext14_16x4d", "forms": "resnext14_16x4d", "shuffle": "shufflenet_g8_w1"}


def blocks(channels: int, groups: int) -> Any:
    """Return which inputs a grouped convolution's outputs see."""
    n = channels // groups
    return np.kron(np.eye(groups), np.ones((n, n))) > 0


def permutation(channels: int, groups: int) -> Any:
    """Return ShuffleNet's shuffle by its definition: out[i * groups + g] = in[g * n + i]."""
    n = channels // groups
    matrix = np.zeros((channels, channels), bool)
    for group in range(groups):
        for place in range(n):
            matrix[place * groups + group, group * n + place] = True
    return matrix


@pytest.mark.once
@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (8, 2), (8, 8), (12, 3)])
def test_reach_finds_what_is_connected(channels: int, groups: int) -> None:
    found = connectivity.reach(connectivity.summing(channels, groups), channels)
    np.testing.assert_array_equal(found, blocks(channels, groups))
    shuffled = connectivity.reach(connectivity.shuffling(groups), channels)
    np.testing.assert_array_equal(shuffled, permutation(channels, groups))


@pytest.mark.once
def test_a_stack_connects_as_the_product_of_its_steps() -> None:
    channels, groups = 12, 3
    convolution, dealt = blocks(channels, groups), permutation(channels, groups)
    plain = connectivity.stack(channels, groups, 3, shuffle=False)
    assert [step.name for step in plain] == ["input", "convolution 1", "convolution 2", "convolution 3"]
    np.testing.assert_array_equal(plain[-1].reached, convolution)
    assert plain[-1].share == pytest.approx(1 / 3)
    mixed = connectivity.stack(channels, groups, 3, shuffle=True)
    assert [step.name for step in mixed[1:4]] == ["convolution 1", "shuffle 1", "convolution 2"]
    np.testing.assert_array_equal(mixed[2].reached, dealt @ convolution)
    assert mixed[3].reached.all()
    assert connectivity.by_group(mixed[2].reached, groups)[:3].tolist() == np.eye(3, dtype=bool).tolist()


@pytest.mark.once
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (16, 8), (24, 8), (8, 1), (4, 4)])
def test_how_many_convolutions_mix_all_channels(channels: int, groups: int) -> None:
    reached, expected = blocks(channels, groups), None
    for count in range(1, 7):
        if reached.all():
            expected = count
            break
        reached = blocks(channels, groups) @ permutation(channels, groups) @ reached
    assert connectivity.convolutions_to_mix(channels, groups) == expected


@pytest.mark.once
def test_a_shufflenets_groups() -> None:
    # arXiv 1707.01083, table 1: 240 and 384 channels in the first stage; the shuffle stands after a quarter of them.
    assert page_shuffle.shuffled_channels("shufflenet_g3_w1") == (60, 3)
    assert page_shuffle.shuffled_channels("shufflenet_g8_w1") == (96, 8)


@pytest.mark.once
def test_the_worked_example_of_the_documentation() -> None:
    products, convolved, ways = page_grouped.worked_example()
    right, wrong, strided = ways
    assert right.results.tolist() == [6, 6, 6, 6, 22, 22, 22, 22] == convolved.tolist()
    assert wrong.results.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert strided.results.tolist() == [12, 12, 12, 12, 16, 16, 16, 16]
    assert products.tolist() == [[channel] * 4 for channel in range(8)]
    for channel in range(8):
        for place in range(4):
            assert right.owners[channel, place] == channel // 4 * 4 + place
            assert wrong.owners[channel, place] == channel
            assert strided.owners[channel, place] == channel % 2 * 4 + place


@pytest.mark.once
def test_costs_counted_by_hand() -> None:
    name, spec = page_grouped.grouped_layer("resnext50_32x4d")
    groups, depthwise, dense = page_grouped.costs(spec).values()
    assert name == "stage1_unit1_spatial_conv"
    assert [cost["kernel"] for cost in (groups, depthwise, dense)] == [
        (3, 3, 4, 128),
        (3, 3, 128, 4),
        (3, 3, 128, 128),
    ]
    assert groups["MACs"] == depthwise["MACs"] == 56 * 56 * 9 * 4 * 128
    assert dense["MACs"] == 32 * groups["MACs"]
    assert (groups["written"], depthwise["written"]) == (56 * 56 * 128, 56 * 56 * 128 * 4)
    row = '<th scope="row">parameters</th><td>{:,}</td><td>{:,}</td><td>{:,}</td>'
    parameters = (9 * 4 * 128, 9 * 4 * 128, 9 * 128 * 128)
    assert row.format(*parameters) in explain.make("grouped", "resnext50_32x4d").text


def test_the_ways_agree_on_random_numbers() -> None:
    spec = ConvSpec.of((None, 9, 7, 12), (3, 3, 4, 6), groups=3, strides=2)
    for algorithm in ("depthwise_sum", "block_diagonal"):
        assert page_grouped.difference(spec, algorithm) < 1e-5


@pytest.mark.once
def test_a_network_of_depthwise_convolutions_has_groups_of_one() -> None:
    _, spec = page_grouped.grouped_layer("mobilenetv1_100")
    assert (spec.groups, spec.kernel_shape) == (32, (3, 3, 1, 32))


@pytest.mark.once
def test_the_rank_of_a_kernel_known_by_hand() -> None:
    kernel = np.zeros((1, 2, 1, 2))
    kernel[0, :, 0] = [[3, 0], [0, 4]]  # singular values 4 and 3
    assert page_separable.approximate(kernel, 1)[2] == pytest.approx(3 / 5)
    assert page_separable.errors(kernel) == pytest.approx([3 / 5, 0])
    pattern = np.einsum("ij,q,k->ijqk", np.arange(9.0).reshape(3, 3), [1.0, 2.0], [1.0, -1.0, 0.5])
    assert page_separable.errors(pattern)[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.once
@pytest.mark.parametrize("shape", [(3, 3, 4, 20), (3, 3, 2, 5), (5, 1, 1, 3)])
def test_separable_kernels_multiply_to_the_nearest_dense_one(shape: tuple[int, int, int, int]) -> None:
    kernel = np.random.default_rng(0).normal(size=shape)
    curve = page_separable.errors(kernel)
    assert len(curve) == shape[0] * shape[1]
    assert curve == sorted(curve, reverse=True)
    for multiplier in (1, 2, len(curve)):
        depthwise, pointwise, error = page_separable.approximate(kernel, multiplier)
        assert depthwise.shape == (*shape[:3], multiplier)
        assert pointwise.shape == (1, 1, shape[2] * multiplier, shape[3])
        product = dense_of_separable(depthwise, pointwise)
        distance = np.linalg.norm(product - kernel) / np.linalg.norm(kernel)
        assert distance == pytest.approx(error, abs=1e-7) == pytest.approx(curve[multiplier - 1], abs=1e-7)
        for channel in range(shape[2]):
            matrix = product[:, :, channel].reshape(-1, shape[3])
            assert np.linalg.matrix_rank(matrix) == min(multiplier, *matrix.shape)
    assert page_separable.output_difference(kernel, depthwise, pointwise) < 1e-5
    assert page_separable.output_difference(kernel, *page_separable.approximate(kernel, 1)[:2]) > 0.1


def test_kernels_of_networks_and_files(tmp_path: Path) -> None:
    assert page_separable.find_kernel("resnet18")[0].shape == (7, 7, 3, 64)
    inner = keras.Sequential([keras.Input((8, 8, 3)), GroupedConv2D(6, 3, groups=3), GroupedConv2D(4, 1)])
    model = keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.Conv2D(5, (1, 3), name="wanted")])
    model.save(tmp_path / "model.keras")
    kernel, origin, is_random = page_separable.find_kernel(str(tmp_path / "model.keras"))
    np.testing.assert_array_equal(kernel, keras.ops.convert_to_numpy(model.layers[-1].kernel))
    assert "wanted" in origin
    assert not is_random
    inner.save(tmp_path / "inner.keras")
    with pytest.raises(UserError, match="no dense convolution larger than 1x1"):
        page_separable.find_kernel(str(tmp_path / "inner.keras"))


@pytest.mark.once
def test_a_block_in_three_forms_counted_by_hand() -> None:
    forms = {form: page_forms.describe_block("resnext50_32x4d", form) for form in "abc"}
    weights = 256 * 128 + 9 * 4 * 128 + 128 * 256
    for block in forms.values():
        assert block.parts[1].copies * block.parts[1].spec.groups == 32
        assert block.parts[0].spec.input_shape == (None, 56, 56, 256)
        assert block.squeezed is None
        assert block.parameters == weights + 2 * (128 + 128 + 256)
        assert block.macs == 56 * 56 * weights == sum(part.copies * part.spec.macs for part in block.parts)
    kernels = {form: [(part.copies, part.spec.kernel_shape) for part in block.parts] for form, block in forms.items()}
    assert kernels == {
        "a": [(32, (1, 1, 256, 4)), (32, (3, 3, 4, 4)), (32, (1, 1, 4, 256))],
        "b": [(32, (1, 1, 256, 4)), (32, (3, 3, 4, 4)), (1, (1, 1, 128, 256))],
        "c": [(1, (1, 1, 256, 128)), (1, (3, 3, 4, 128)), (1, (1, 1, 128, 256))],
    }


@pytest.mark.once
def test_a_squeezed_block() -> None:
    block = page_forms.describe_block("seresnext50_32x4d", "c")
    assert block.squeezed == 16  # 256 / 16
    plain = page_forms.describe_block("resnext50_32x4d", "c")
    assert block.parameters - plain.parameters == 2 * 256 * 16 + 16 + 256


def program(topic: str) -> str:
    """Return the first program of a topic's page."""
    found = re.search("<pre.*?><code>(.*?)</code></pre>", explain.make(topic).text, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_the_programs_on_the_pages_compute_what_they_say() -> None:
    generator = np.random.default_rng(0)
    x, kernel = (generator.normal(size=shape).astype("float32") for shape in ((2, 5, 4, 6), (3, 3, 2, 9)))
    names: dict[str, Any] = {}
    exec(program("shuffle"), names)
    outputs = keras.ops.convert_to_numpy(names["channel_shuffle"](keras.ops.convert_to_tensor(x), 3))
    np.testing.assert_array_equal(outputs, x[..., [0, 2, 4, 1, 3, 5]])
    if keras.backend.backend() == "tensorflow":
        exec(program("grouped"), names)
        expected = np.asarray(grouped_conv2d(x, kernel, groups=3))
        np.testing.assert_allclose(np.asarray(names["grouped"](x, kernel, 3)), expected, atol=1e-5)


class Elements(HTMLParser):
    """The elements of a page, as (tag, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    ["a[x](https://example.org).keras", "`rm`.keras", r"\`a\\[b].keras", "<script>&amp;.keras", "caf\udce9\n|a|.keras"],
)
def test_a_file_s_name_is_text_in_a_page(name: str) -> None:
    class Texts(Elements):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data

    text = f"<p>The layer of {literal(name)}, in <code>{literal(name)}</code>.</p>"
    page = Texts(text + source_line("separable", name))
    shown = printable(name)
    assert f"The layer of {shown}, in {shown}." in page.text
    assert f"groupwise explain separable {shown} --output" in page.text
    assert [tag for tag, _ in page.found if tag in ("a", "code", "script")] == ["code", "code"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The pages and pictures of all topics: the page's path first."""
    folder = tmp_path_factory.mktemp("pages")
    return {topic: explain.write(topic, folder / "made", SMALL_NAMES.get(topic)) for topic in explain.TOPICS}


@pytest.mark.once
@pytest.mark.parametrize("topic", explain.TOPICS)
def test_a_page_stands_alone(topic: str, written: dict[str, list[Path]]) -> None:
    path, *pictures = written[topic]
    text = path.read_text(encoding="utf-8")
    elements = Elements(text).found
    tags = [tag for tag, _ in elements]
    assert dict(elements)["html"]["lang"] == "en"
    assert 'name="viewport" content="width=device-width' in text
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(tags)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    for tag, attributes in elements:
        target = attributes.get("href", attributes.get("xlink:href", attributes.get("src", "#")))
        assert target.startswith("#") or (tag == "a" and target.startswith("https://arxiv.org/")), target
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for _, attributes in elements if attributes.get("role") == "img"]
    assert len(drawings) == len(pictures) == tags.count("svg") == tags.count("figcaption") > 0
    assert all(len(drawing["aria-label"]) > 40 for drawing in drawings)
    assert text.index("<h1>") < text.index("<p>") < text.index("<h2>")


@pytest.mark.once
@pytest.mark.parametrize("topic", explain.TOPICS)
def test_pictures_are_drawn(topic: str, written: dict[str, list[Path]]) -> None:
    for path in written[topic][1:]:
        assert path.suffix == ".png"
        assert 2_000 < path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert image.width <= 720
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20


@pytest.mark.once
@pytest.mark.parametrize("topic", explain.TOPICS)
def test_a_page_in_a_browser(topic: str, written: dict[str, list[Path]], tmp_path: Path) -> None:
    seen = browser.look(written[topic][0], tmp_path)
    assert seen.console == []
    assert seen.width == browser.PHONE
    assert all(300 < width <= browser.PHONE for width in seen.drawings)
    pixels = np.asarray(seen.picture.convert("L"))
    assert (pixels < 100).mean() > 0.005
    assert len(seen.picture.getcolors(1 << 24) or ()) > 100


def in_one_line(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def test_the_forms_agree(written: dict[str, list[Path]]) -> None:
    text = in_one_line(written["forms"][0])
    difference = re.search(r"at most ([\d.]+)% of the largest", text)
    assert difference
    assert float(difference[1]) / 100 <= 1e-5
    assert "All three have the same parameters and MACs." in text


@pytest.mark.once
def test_pages_say_what_was_computed(written: dict[str, list[Path]]) -> None:
    page, shuffled = (in_one_line(written[topic][0]) for topic in ("grouped", "shuffle"))
    assert "[6, 6, 6, 6, 22, 22, 22, 22]" in page
    assert "only this one is equal: right" in page
    assert "stage1_unit1_spatial_conv" in page
    assert "has 96 channels in 8 groups of 12" in shuffled


@pytest.mark.once
def test_the_default_examples() -> None:
    page: Page = explain.make("shuffle")
    assert list(page.figures) == ["shuffle_lines", "shuffle_matrix"]
    answer = page.text.partition("<h2>")[0]
    assert "33%" in answer
    assert "after 2 convolutions" in " ".join(answer.split())


@pytest.mark.once
@pytest.mark.parametrize(
    ("topic", "name", "message"),
    [
        ("kernels", None, "topic 'kernels': must be one of grouped, forms, shuffle, separable"),
        ("grouped", "resnxt50", "did you mean resnext50_32x4d"),
        ("grouped", "resnet18", "has no grouped convolution"),
        ("forms", "resnet50", "has no forms a, b and c"),
        ("shuffle", "resnet18", "has no channel shuffle between grouped convolutions"),
        ("shuffle", "shufflenet_v2_x1_0", "has no channel shuffle between grouped convolutions"),
        ("shuffle", "shufflenet_g1_w1", "has no channel shuffle between grouped convolutions"),
        ("separable", "nothing.keras", "nothing.keras does not exist"),
    ],
)
def test_wrong_topics_and_names(
    topic: str, name: str | None, message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    code = main(["explain", topic, *([name] if name else []), "--output", str(tmp_path / "pages")])
    errors = capsys.readouterr().err
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "pages").exists()


@pytest.mark.once
def test_damaged_files_and_wrong_folders(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    file = tmp_path / "damaged.keras"
    file.write_text("no model")
    assert main(["explain", "separable", str(file), "--output", str(tmp_path / "pages")]) == 2
    assert "is no .keras file, or a damaged one" in capsys.readouterr().err
    assert main(["explain", "shuffle", "--output", str(file)]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert main(["explain", "shuffle"]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.once
def test_the_command_says_where_the_page_is(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    assert main(["explain", "grouped", "--output", str(tmp_path / "new" / "pages")]) == 0
    output = capsys.readouterr().out
    assert str(tmp_path / "new" / "pages" / "grouped.html") in output
    names = {path.name for path in (tmp_path / "new" / "pages").iterdir()}
    assert names == {"grouped.html", "grouped_connections.png", "grouped_sums.png"}
