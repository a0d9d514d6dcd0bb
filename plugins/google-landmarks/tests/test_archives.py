"""Images out of archives and trees; MD5 sums; fetching."""

from __future__ import annotations

import http.server
import json
import pickle
import tarfile
import threading
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from graftwork import DataError, GraftworkError
from graftwork_google_landmarks import GoogleLandmarksV2, ImageTree, TarImages, check_archives, fetch, fetch_split, open_images, sources
from graftwork_google_landmarks import archives as module
from graftwork_google_landmarks.archives import archives_in
from graftwork_google_landmarks.download import main


def test_bytes_out_of_an_archive_are_those_of_the_extracted_file(tmp_path: Path, make_layout, landmark_of) -> None:
    packed, loose = make_layout(tmp_path / "packed"), make_layout(tmp_path / "loose", extracted=True)
    tars, tree = open_images(packed / "train"), open_images(loose / "train")
    assert isinstance(tars, TarImages)
    assert isinstance(tree, ImageTree)
    for name in landmark_of:
        assert tars.read(name) == tree.read(name) == (loose / "train" / name[0] / name[1] / name[2] / f"{name}.jpg").read_bytes()
    assert tars.archive_of(list(landmark_of)[4]) == packed / "train/images_001.tar"


def test_an_image_that_is_in_no_archive_is_named_with_the_archives(layout: Path) -> None:
    with pytest.raises(DataError, match=r"image 00000000000000ff is in none of the archives in .*train: images_000.tar, images_001.tar"):
        open_images(layout / "train").read("00000000000000ff")
    with pytest.raises(DataError, match=r"image 00000000000000ff cannot be read: .*0/0/0/00000000000000ff.jpg"):
        ImageTree(layout / "train").read("00000000000000ff")


def test_an_archive_that_is_cut_short_is_named_with_the_image(layout: Path) -> None:
    path = layout / "train/images_000.tar"
    store = TarImages([path])
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(DataError, match=r"image 0000000000000001 is cut short in .*images_000.tar: 88 of \d+ bytes"):
        store.read("0000000000000001")


def test_what_is_no_archive_is_refused(layout: Path) -> None:
    (layout / "train/images_001.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"images_001.tar cannot be read as a tar file"):
        open_images(layout / "train")


def test_a_damaged_archive_is_named_by_its_md5(layout: Path) -> None:
    path = layout / "index/images_000.tar"
    check_archives([path])
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"index/images_000.tar is damaged: its MD5 is .*md5.images_000.txt says"):
        open_images(layout / "index", verify=True)


def test_an_archive_without_a_sum_cannot_be_verified(layout: Path) -> None:
    (layout / "md5sum/test/md5.images_001.txt").unlink()
    with pytest.raises(DataError, match=r"test/images_001.tar has no md5.images_001.txt"):
        open_images(layout / "test", verify=True)


def test_a_check_that_was_stopped_goes_on_where_it_was(layout: Path, tmp_path: Path, monkeypatch) -> None:
    ledger, archives = tmp_path / "verified.json", archives_in(layout / "train")
    read = []
    honest = module.md5_of
    monkeypatch.setattr(module, "md5_of", lambda path: read.append(path.name) or honest(path))
    (layout / "md5sum/train/md5.images_002.txt").write_text("0" * 32)
    with pytest.raises(DataError, match=r"images_002.tar is damaged"):
        check_archives(archives, ledger)
    assert len(json.loads(ledger.read_text())) == 2
    with pytest.raises(DataError, match=r"images_002.tar is damaged"):
        check_archives(archives, ledger)
    assert read == ["images_000.tar", "images_001.tar", "images_002.tar", "images_002.tar"]


def test_offsets_are_kept_and_a_changed_archive_is_scanned_again(layout: Path, tmp_path: Path, monkeypatch, landmark_of) -> None:
    cache, archives = tmp_path / "cache/train.tars.safetensors", archives_in(layout / "train")
    scanned = []
    honest = module._scan
    monkeypatch.setattr(module, "_scan", lambda path: scanned.append(path.name) or honest(path))
    first = TarImages(archives, cache)
    again = TarImages(archives, cache)
    assert len(scanned) == 3
    assert all(again.read(name) == first.read(name) for name in landmark_of)
    with tarfile.open(archives[1], "w:"):
        pass
    assert len(TarImages(archives, cache).ids) == 8
    assert scanned[3:] == ["images_001.tar"]
    cache.write_bytes(b"damaged")
    TarImages(archives, cache)
    assert len(scanned) == 7


def test_an_image_in_two_archives_is_refused(layout: Path) -> None:
    twice = layout / "train/images_003.tar"
    twice.write_bytes((layout / "train/images_000.tar").read_bytes())
    with pytest.raises(DataError, match="lists image 0000000000000001 twice"):
        open_images(layout / "train")


def test_worker_processes_read_from_the_same_archives(layout: Path, landmark_of) -> None:
    data = GoogleLandmarksV2(str(layout), (8, 8))
    alone = [data["train"][at]["image"] for at in range(12)]  # opened before the workers are forked
    batches = list(DataLoader(data["train"], batch_size=4, num_workers=2, collate_fn=data.collate))
    assert [name for batch in batches for name in batch["image_id"]] == list(landmark_of)
    assert all((batches[at // 4]["image"][at % 4] == image).all() for at, image in enumerate(alone))
    assert pickle.loads(pickle.dumps(data["train"].store)).read("0000000000000001") == data["train"].store.read("0000000000000001")


def test_addresses_are_those_of_the_server() -> None:
    listed = [source.url for source in sources("test", range(19, 20))]
    base = "https://s3.amazonaws.com/google-landmark"
    assert listed == [
        f"{base}/metadata/test.csv",
        f"{base}/ground_truth/recognition_solution_v2.1.csv",
        f"{base}/ground_truth/retrieval_solution_v2.1.csv",
        f"{base}/md5sum/test/md5.images_019.txt",
        f"{base}/test/images_019.tar",
    ]
    assert sum(source.path.endswith(".tar") for source in sources("train")) == 500
    with pytest.raises(ValueError, match="index has the archives 0 to 99"):
        list(sources("index", range(100, 101)))
    with pytest.raises(ValueError, match="split is one of train, index, test"):
        list(sources("val"))


def test_without_a_folder_the_addresses_are_printed(capsys) -> None:
    assert main(["index", "--archives", "0", "1"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[-1] == "https://s3.amazonaws.com/google-landmark/index/images_001.tar"
    assert len(printed) == 8


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with ranges; `broken` counts the answers that stop half way."""

    broken = 0
    ranges: list[str] = []

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = path.read_bytes(), self.headers.get("Range")
        start = 0
        if asked:
            Server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = len(content)
        if Server.broken and path.suffix == ".tar":
            Server.broken -= 1
            stop = (start + len(content)) // 2
        self.wfile.write(content[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, make_layout):
    root = make_layout(tmp_path / "server")
    Server.broken, Server.ranges = 0, []
    handler = lambda *arguments: Server(*arguments, directory=str(root))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield root, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_fetch_that_broke_off_goes_on_where_it_was(server, tmp_path: Path) -> None:
    root, url = server
    Server.broken, path = 1, tmp_path / "got/images_000.tar"
    with pytest.raises(GraftworkError, match=r"broke off|cannot be fetched"):
        fetch(f"{url}/train/images_000.tar", path)
    assert not path.exists()
    half = path.with_name("images_000.tar.part").stat().st_size
    fetch(f"{url}/train/images_000.tar", path)
    assert path.read_bytes() == (root / "train/images_000.tar").read_bytes()
    assert Server.ranges == [f"bytes={half}-"]


def test_a_whole_part_only_gets_its_name(server, tmp_path: Path) -> None:
    root, url = server
    (tmp_path / "a.tar.part").write_bytes((root / "train/images_000.tar").read_bytes())
    fetch(f"{url}/train/images_000.tar", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == (root / "train/images_000.tar").read_bytes()


def test_a_fetched_split_opens_and_a_wrong_sum_is_refused(server, tmp_path: Path) -> None:
    root, url = server
    fetch_split(tmp_path / "got", "test", range(2), url)
    assert len(GoogleLandmarksV2(str(tmp_path / "got"), verify=True)["test"]) == 6
    (root / "md5sum/index/md5.images_000.txt").write_text("0" * 32)
    (root / "metadata/index_label_to_hierarchical.csv").write_text("landmark_id,category\n")
    with pytest.raises(DataError, match=r"index/images_000.tar came damaged twice"):
        fetch_split(tmp_path / "got", "index", range(1), url)
    with pytest.raises(GraftworkError, match=r"nowhere.tar cannot be fetched"):
        fetch(f"{url}/nowhere.tar", tmp_path / "x")
