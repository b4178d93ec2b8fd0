"""`predict` as a user runs it, on every kind of image file and on everything that can be wrong."""

import csv
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from intrasense_fast import IntraSenseNet
from intrasense_fast.cli import main
from intrasense_fast.inference import predict_probabilities
from tests.support.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("run") / "best")


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 40, (50, 70))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 4) * 6 + 120, 0, 255).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_mirrored_on_the_original_grids(
    checkpoint: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "näh images"
    (source / "sub folder").mkdir(parents=True)
    shapes = {
        "a (1).png": (50, 70),
        "a (2).bmp": (33, 41),
        "sub folder/b.jpg": (128, 64),
        "c.tiff": (256, 256),
    }
    for name, shape in shapes.items():
        cv2.imwrite(str(source / name), cv2.resize(picture, shape[::-1]))
    # Half of the picture is lesion, whatever it shows.
    net = IntraSenseNet.from_pretrained(checkpoint)
    image = torch.from_numpy(cv2.resize(picture, (32, 32)))[None, None] / 255
    with torch.no_grad():
        net.decoder.head.bias -= net(image).median()
    checkpoint = tmp_path / "best"
    net.save_pretrained(checkpoint, {"image_size": 32})
    out = tmp_path / "out"
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(out),
                "--probabilities",
            ]
        )
        == 0
    )
    table = rows(out / "predictions.csv")
    assert [row["image"] for row in table] == [
        "a (1).png",
        "a (2).bmp",
        "c.tiff",
        "sub folder/b.jpg",
    ]
    for row in table:
        mask = read(out / row["mask"])
        probability = read(out / row["mask"].replace("_mask.png", "_probability.png"))
        assert (
            mask.shape == shapes[row["image"]]
            and mask.dtype == np.uint8
            and set(np.unique(mask)) <= {0, 255}
        )
        assert probability.shape == mask.shape and probability.dtype == np.uint16
        clear = np.abs(probability / 65535.0 - 0.5) > 1e-4
        assert np.array_equal((mask == 255)[clear], (probability > 65535 / 2)[clear])
        assert int(row["area"]) == np.count_nonzero(mask)
        if int(row["area"]):
            ys, xs = np.nonzero(mask)
            box = [int(row[key]) for key in ("left", "top", "width", "height")]
            assert box == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert float(row["mean_probability"]) == pytest.approx(
                (probability[mask == 255] / 65535).mean(), abs=1e-4
            )
        assert read(out / row["mask"].replace("_mask.png", "_overlay.png")).shape == (
            *mask.shape,
            3,
        )
    assert sum(int(row["area"]) for row in table) > 0
    assert (out / "overlays.png").stat().st_size > 0


def test_probabilities_equal_the_network_at_its_own_size(
    checkpoint: Path, picture: np.ndarray
) -> None:
    net = IntraSenseNet.from_pretrained(checkpoint)
    image = cv2.resize(picture, (64, 64)).astype(np.float32) / 255
    (found,) = predict_probabilities(net.train(), [image], 64)
    assert net.training
    with torch.no_grad():
        wanted = torch.sigmoid(net.eval()(torch.from_numpy(image)[None, None]))[0, 0].numpy()
    assert found.shape == (64, 64) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_bfloat16_is_near_and_is_kept_by_continue(
    checkpoint: Path,
    picture: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out"
    cv2.imwrite(str(source), picture)
    flags = ["predict", "--checkpoint", str(checkpoint), str(source), "--probabilities"]
    for amp in ("off", "bf16"):
        assert main([*flags, "--out", str(tmp_path / amp), "--amp", amp]) == 0
    exact, near = (read(tmp_path / amp / "a_probability.png") / 65535 for amp in ("off", "bf16"))
    assert not np.array_equal(exact, near)
    assert np.abs(exact - near).mean() < 0.05
    out = tmp_path / "bf16"
    assert main([*flags, "--out", str(out), "--continue"]) == 2
    assert "was made with --amp bf16, now off" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind",
    [
        *("grey", "RGB", "16-bit", "jpeg"),
        *(pytest.param(k, marks=pytest.mark.extended) for k in ("RGBA", "palette", "bmp", "tiff")),
    ],
)
def test_every_kind_of_file_gives_the_same_mask(
    kind: str, checkpoint: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    from PIL import Image

    suffix = {"jpeg": ".jpg", "bmp": ".bmp", "tiff": ".tiff"}.get(kind, ".png")
    path = tmp_path / f"image{suffix}"
    if kind in ("grey", "jpeg", "bmp", "tiff"):
        Image.fromarray(picture).save(path, **({"quality": 100} if kind == "jpeg" else {}))
    elif kind == "16-bit":
        cv2.imwrite(str(path), picture.astype(np.uint16) * 257)
    else:
        Image.fromarray(picture).convert({"palette": "P"}.get(kind, kind)).save(path)
    cv2.imwrite(str(tmp_path / "plain.png"), picture)
    for name in (path.name, "plain.png"):
        assert (
            main(
                [
                    "predict",
                    "--checkpoint",
                    str(checkpoint),
                    str(tmp_path / name),
                    "--out",
                    str(tmp_path / f"out-{name}"),
                ]
            )
            == 0
        )
    found, wanted = (
        read(tmp_path / f"out-{name}" / f"{Path(name).stem}_mask.png")
        for name in (path.name, "plain.png")
    )
    assert found.shape == wanted.shape == picture.shape
    assert (found != wanted).mean() <= (0.02 if kind == "jpeg" else 0.0)


def test_bad_files_are_named_and_the_rest_go_on(
    checkpoint: Path, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    cv2.imwrite(str(source / "good.png"), picture)
    cv2.imwrite(str(source / "cut.jpg"), picture)
    content = (source / "cut.jpg").read_bytes()
    (source / "cut.jpg").write_bytes(content[: len(content) * 2 // 3])
    (source / "empty.png").write_bytes(b"")
    (source / "text.png").write_text("no image")
    cv2.imwrite(str(source / "nan.tiff"), np.full((40, 40), np.nan, np.float32))
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    errors = capsys.readouterr().err
    assert (
        all(name in errors for name in ("cut.jpg", "empty.png", "text.png", "nan.tiff"))
        and "Traceback" not in errors
    )
    status = {row["image"]: row["status"] for row in rows(tmp_path / "out" / "predictions.csv")}
    assert status.pop("good.png") == "done"
    assert status == dict.fromkeys(["cut.jpg", "empty.png", "text.png", "nan.tiff"], "failed")


def test_masks_beside_their_images_are_left_out_and_said(
    checkpoint: Path, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.png", "a_mask.png", "a_mask_1.png", "b_mask.png"):
        cv2.imwrite(str(source / name), picture)
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert [row["image"] for row in rows(tmp_path / "out" / "predictions.csv")] == [
        "a.png",
        "b_mask.png",
    ]
    said = capsys.readouterr().out
    assert "a_mask.png" in said and "a_mask_1.png" in said


def test_a_name_that_is_no_utf8(checkpoint: Path, picture: np.ndarray, tmp_path: Path) -> None:
    source, odd = tmp_path / "in", os.fsdecode(b"caf\xe9.png")
    source.mkdir()
    try:
        (source / odd).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    (row,) = rows(tmp_path / "out" / "predictions.csv")
    assert (row["image"], row["mask"]) == ("caf%E9.png", "caf%E9_mask.png")
    assert read(tmp_path / "out" / row["mask"]).shape == picture.shape


def test_a_folder_that_links_to_itself_is_read_once(
    checkpoint: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "z").mkdir(parents=True)
    cv2.imwrite(str(source / "a.png"), picture)
    cv2.imwrite(str(source / "z" / "b.png"), picture)
    (source / "self").symlink_to(".")
    (source / "also z").symlink_to("z")
    (tmp_path / "elsewhere").mkdir()
    cv2.imwrite(str(tmp_path / "elsewhere" / "c.png"), picture)
    (source / "c").symlink_to(tmp_path / "elsewhere")
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert [row["image"] for row in rows(tmp_path / "out" / "predictions.csv")] == [
        "a.png",
        "also z/b.png",
        "c/c.png",
        "z/b.png",
    ]


def test_a_folder_that_cannot_be_read_is_named(
    checkpoint: Path,
    picture: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    (source / "locked").mkdir(parents=True)
    cv2.imwrite(str(source / "a.png"), picture)
    scandir = os.scandir

    def refused(path: str | os.PathLike[str]) -> object:
        # Root reads what is locked, so the system's answer is given here.
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert f"{source / 'locked'}: cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_write_that_fails_names_the_file(
    checkpoint: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    command = [
        sys.executable,
        "-m",
        "intrasense_fast",
        "predict",
        "--checkpoint",
        checkpoint,
        "a.png",
        "--out",
        "out",
    ]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
    # Python would keep 20 bytes of every module that it compiles.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2 and "predict: out/settings.json: File too large" in done.stderr, (
        done.stderr
    )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.png", "A.png")])
def test_two_inputs_of_one_output_are_an_error(
    names: tuple[str, str],
    checkpoint: Path,
    picture: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in names:
        cv2.imwrite(str(source / name), picture)
    if len(list(source.iterdir())) < 2:
        pytest.skip("this file system does not tell a.png from A.png")
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(checkpoint),
                str(source),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert all(name in message for name in names) and not (tmp_path / "out").exists()


def test_usage_errors(
    checkpoint: Path, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious.txt").write_text("keep")
    (tmp_path / "none").mkdir()
    sizeless = tiny_checkpoint(tmp_path / "sizeless", None)
    three = str(tiny_checkpoint(tmp_path / "three", num_classes=3))
    image, out, best = str(tmp_path / "a.png"), str(tmp_path / "out"), str(checkpoint)
    for arguments, message in (
        (["--checkpoint", best, image, "--out", str(tmp_path / "used")], "is in use"),
        (
            ["--checkpoint", best, str(tmp_path / "absent.png"), "--out", out],
            "no such image or folder",
        ),
        (["--checkpoint", best, str(tmp_path / "none"), "--out", out], "holds no images"),
        (["--checkpoint", str(tmp_path / "none"), image, "--out", out], "is no checkpoint folder"),
        (
            ["--checkpoint", best, image, "--out", out, "--threshold", "1.5"],
            r"--threshold must lie in [0, 1]",
        ),
        (
            ["--checkpoint", best, image, "--out", out, "--threshold", "often"],
            "argument --threshold: 'often': a number from 0 to 1, or tuned, is needed",
        ),
        (
            ["--checkpoint", best, image, "--out", out, "--size", "16"],
            "--size must be an integer from 32 to 8192",
        ),
        (["--checkpoint", best, image, "--out", out, "--device", "cuda:7"], "--device cuda:7"),
        (
            ["--checkpoint", best, image, "--out", out, "--device", "meta"],
            "--device meta: cannot be used here",
        ),
        (
            ["--checkpoint", best, image, "--out", out, "--device", "privateuseone"],
            "--device privateuseone: cannot be used",
        ),
        (
            ["--checkpoint", three, image, "--out", out],
            "three: has 3 classes, a network with one class (lesion) is needed",
        ),
        (["--checkpoint", str(sizeless), image, "--out", out], "give --size"),
    ):
        assert main(["predict", *arguments]) == 2, arguments
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown
    assert (
        not (tmp_path / "out").exists()
        and (tmp_path / "used" / "precious.txt").read_text() == "keep"
    )
    assert (
        main(["predict", "--checkpoint", str(sizeless), image, "--out", out, "--size", "64"]) == 0
    )


def test_non_finite_pixels_and_several_classes(tmp_path: Path) -> None:
    net = IntraSenseNet.from_pretrained(tiny_checkpoint(tmp_path / "one"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        predict_probabilities(net, [np.full((40, 40), np.nan, np.float32)], 32)
    several = IntraSenseNet.from_pretrained(tiny_checkpoint(tmp_path / "three", num_classes=3))
    with pytest.raises(ValueError, match="needs a network with one class, this one has 3"):
        predict_probabilities(several, [np.zeros((40, 40), np.float32)], 32)
    colour = IntraSenseNet.from_pretrained(tiny_checkpoint(tmp_path / "colour", in_channels=3))
    assert predict_probabilities(colour, [np.zeros((40, 50), np.float32)], 32)[0].shape == (40, 50)
