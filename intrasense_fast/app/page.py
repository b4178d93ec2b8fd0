"""The page: a picture in, and what the network makes of it, on gradio."""

import contextlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from intrasense_fast.app import markup
from intrasense_fast.app.answers import Shown, shown_file, shown_picture
from intrasense_fast.data.images import ImageError
from intrasense_fast.data.phantom import phantom
from intrasense_fast.errors import first_line
from intrasense_fast.inference import NotFiniteError
from intrasense_fast.inference.ensemble import Ensemble
from intrasense_fast.prediction.outputs import Origin
from intrasense_fast.prediction.work import Picture

_EXAMPLE_SEED = 7
_EXAMPLE_SHAPE = (384, 512)


def example(ensemble: Ensemble) -> Shown:
    """A simulated picture with one lesion, segmented."""
    image, _ = phantom(_EXAMPLE_SEED, _EXAMPLE_SHAPE, lesions=1, distractors=1)
    return shown_picture(ensemble, Picture(image, Origin()), "example_phantom.png")


def build(gr: ModuleType, ensemble: Ensemble, checkpoint: str, threshold: float) -> Any:
    """The gradio Blocks of the page.

    Args:
        gr: gradio.
        ensemble: who answers.
        checkpoint: what it is called.
        threshold: where the slider stands first.

    Raises:
        NotFiniteError: the network fails on the example.
    """
    first = example(ensemble)

    def changes(shown: Shown, at: float) -> tuple[Any, ...]:
        """What a new picture changes: state, input, status and results."""
        results = markup.outline(shown, at), markup.maps(shown), markup.numbers(shown, at)
        return shown, None, markup.status(shown), *results

    def take(given: tuple[str, str] | None, at: float) -> tuple[Any, ...]:
        """Segment an uploaded picture; the file goes at once."""
        if given is None:
            return (gr.skip(),) * 6
        path, name = given
        try:
            return changes(shown_file(ensemble, path, name), at)
        except (ImageError, NotFiniteError) as error:
            return None, None, markup.error(str(error).replace(path, name)), "", "", ""
        # Memory of the GPU that is full is a RuntimeError.
        except (MemoryError, RuntimeError) as error:
            reason = f"{name}: cannot be segmented here ({first_line(error)}): make it smaller"
            return None, None, markup.error(reason), "", "", ""
        finally:
            _forget(Path(path))

    def move(shown: Shown | None, at: float) -> tuple[Any, ...]:
        """What the threshold changes; the networks do not run."""
        if shown is None:
            return gr.skip(), gr.skip()
        return markup.outline(shown, at), markup.numbers(shown, at)

    _, _, status, outline, maps, numbers = changes(first, threshold)
    with gr.Blocks(title="Lesion segmentation in ultrasound", analytics_enabled=False) as page:
        gr.HTML(markup.head(checkpoint), padding=False)
        state = gr.State(first)
        with gr.Row(elem_id="isf-main"):
            with gr.Column(scale=2, min_width=280):
                picture = gr.Image(
                    label="Picture",
                    show_label=False,
                    placeholder="Drop, paste or choose a picture\nPNG, JPEG, BMP or TIFF",
                    sources=["upload", "clipboard"],
                    height=190,
                    elem_id="isf-picture",
                    buttons=[],
                )
                # A class of one's own would make gradio write a file beside this one.
                picture.preprocess = _as_it_came
                # The picture's field takes what a browser calls an image, and no DICOM.
                file = gr.UploadButton("Any file, such as DICOM", elem_id="isf-file", size="sm")
                file.preprocess = _as_it_came
                button = gr.Button("Example picture (simulated)", elem_id="isf-example", size="sm")
                slider = gr.Slider(
                    0.01,
                    0.99,
                    threshold,
                    step=0.01,
                    label="Threshold",
                    info="Pixels with a higher probability are lesion.",
                    elem_id="isf-threshold",
                    buttons=[],
                )
                told = gr.HTML(numbers, padding=False, elem_id="isf-numbers")
            with gr.Column(scale=3, min_width=280):
                line = gr.HTML(status, padding=False, elem_id="isf-status")
                drawn = gr.HTML(outline, padding=False, elem_id="isf-drawn")
                mapped = gr.HTML(maps, padding=False, elem_id="isf-maps")
        changed = [state, picture, line, drawn, mapped, told]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for given in (picture, file):
            given.upload(take, [given, slider], changed, **{**quiet, "show_progress": "minimal"})
        button.click(lambda at: changes(first, at), [slider], changed, **quiet)
        slider.change(move, [state, slider], [drawn, told], trigger_mode="always_last", **quiet)
    return page


def _as_it_came(payload: Any) -> tuple[str, str] | None:
    """Path and name of an uploaded file, which gradio would decode or copy itself; None where there
    is none."""
    if payload is None or not payload.path:
        return None
    return payload.path, payload.orig_name or Path(payload.path).name


def _forget(upload: Path) -> None:
    """Remove an uploaded file, and the folder that gradio made for it."""
    with contextlib.suppress(OSError):
        upload.unlink()
        if not any(upload.parent.iterdir()):
            shutil.rmtree(upload.parent)
