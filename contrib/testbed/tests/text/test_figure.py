from __future__ import annotations

from itertools import combinations

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.text.blocks import TextBlocks
from graftwork_testbed.text.figure import draw_texts
from graftwork_testbed.text.paraphrases import paraphrase_pairs
from graftwork_testbed.text.pydoc_text import pydoc_text
from graftwork_testbed.text.pydoc_topics import load_topics
from graftwork_testbed.text.template_text import template_text

SHEETS = {
    "pydoc": (lambda: pydoc_text(areas=["strings", "execution", "expressions"]), {"per_group": 2}),
    "template": (lambda: template_text("topic", samples=200), {"per_group": 1}),
    "pairs": (lambda: paraphrase_pairs(60), {"per_group": 1}),
    "queries": (lambda: queries(), {"max_lines": 2}),
    "blocks": (lambda: TextBlocks(template_text(samples=200), "byte", 64), {"per_group": 1}),
    "dollars": (lambda: labelled([r"costs $5^ and $\foo$ or " + "w" * 150, "${HOME} & $PATH_ #1 \\alpha"] * 3), {}),
}


def labelled(texts, classes=("one", "two")):
    return Dataset({"train": TensorSamples(text=texts, label=torch.arange(len(texts)) % 2)}, DatasetInfo(classes=classes))


def queries():
    passages = [topic.paragraphs for topic in load_topics()[:4]]
    columns = {"query": ["The assert statement"] * 4, "passage": [each[0] for each in passages], "negatives": passages[::-1]}
    return Dataset({"train": TensorSamples(**columns, topic=["assert"] * 4)})


def written(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", SHEETS)
def test_everything_is_on_the_sheet_and_nothing_overlaps(name):
    make, settings = SHEETS[name]
    figure = draw_texts(make(), "train", **settings)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    for one, other in combinations(boxes, 2):
        wide, tall = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert wide <= 0 or tall <= 1.5  # descenders may touch the line below


def test_every_class_has_its_samples_once_named_with_what_is_known_of_them():
    data = template_text(samples=200)
    found = written(draw_texts(data, "val", per_group=4))
    assert (found.count("negative"), found.count("positive")) == (1, 1)
    assert {"class", "text", "formality", "topic"} <= set(found)
    assert "sentiment" not in found
    texts = data["val"].columns["text"]
    shown = [text for text in texts if any(len(line) > 20 and text.startswith(line) for line in found)]
    labels = data["val"].columns["label"][torch.tensor([texts.index(text) for text in shown])]
    assert labels.bincount().tolist() == [4, 4]
    assert sum(each in ("formal", "informal") for each in found) == 8


def test_pairs_stand_side_by_side_from_the_lowest_target_to_the_highest():
    data = paraphrase_pairs(60)
    found = written(draw_texts(data, "train", per_group=1, max_lines=9))
    assert [each for each in found if each in set("012345")] == list("012345")
    assert {"target", "text", "text pair"} <= set(found)


def test_tokens_are_decoded_where_there_is_no_text():
    data = TextBlocks(labelled(["alpha beta", "gamma delta"]), "byte", 8)
    assert "alpha be" in written(draw_texts(data, "train"))


def test_long_texts_end_in_an_ellipsis_and_short_ones_do_not():
    data = labelled(["word " * 400, "a few words"])
    found = written(draw_texts(data, "train", max_lines=2))
    lines = [line for line in found if line.startswith("word word")]
    assert [line.endswith("…") for line in lines] == [False, True]
    assert "a few words" in found


def test_what_has_no_name_is_numbered():
    data = Dataset({"train": TensorSamples(text=["first", "second"], label=torch.tensor([0, 5]), topic=torch.tensor([2, 9]))})
    assert {"first", "second", "music", "9"} <= set(written(draw_texts(data, "train")))
    named = Dataset(dict(data), DatasetInfo(classes=("zero",)))
    assert {"zero", "5"} <= set(written(draw_texts(named, "train")))


def test_a_sheet_can_be_saved(tmp_path):
    draw_texts(template_text(samples=40), "test", title="Judgements").savefig(tmp_path / "sheet.png", dpi=50)
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(DataError, match="nothing to draw: train is empty"):
        draw_texts(labelled([]), "train")
    with pytest.raises(DataError, match='no split "trian"'):
        draw_texts(labelled(["a"]), "trian")
    with pytest.raises(DataError, match=r"a sheet draws text, .*; train has image"):
        draw_texts(Dataset({"train": TensorSamples(image=torch.zeros(1, 3, 8, 8))}), "train")
    with pytest.raises(DataError, match="train has input_ids"):
        draw_texts(Dataset({"train": TensorSamples(input_ids=torch.zeros(1, 3))}), "train")
    with pytest.raises(ValueError, match="per_group and max_lines must be positive; found 0 and 4"):
        draw_texts(labelled(["a"]), "train", per_group=0)
