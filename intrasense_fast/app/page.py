"""The page: a picture in, and what the network makes of it, on gradio."""

import contextlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from intrasense_fast.app import markup
from intrasense_fast.app.answers import Answer, answer, answer_of
from intrasense_fast.data.images import ImageError
from intrasense_fast.data.phantom import phantom
from intrasense_fast.errors import first_line
from intrasense_fast.inference import NotFiniteError, Segmenter

_EXAMPLE_SEED = 7
_EXAMPLE_SHAPE = (384, 512)


def example(segmenter: Segmenter) -> Answer:
    """A simulated picture with one lesion, segmented."""
    image, _ = phantom(_EXAMPLE_SEED, _EXAMPLE_SHAPE, lesions=1, distractors=1)
    return answer_of(segmenter, image, "example_phantom.png")


def build(gr: ModuleType, segmenter: Segmenter, checkpoint: str, threshold: float) -> Any:
    """The gradio Blocks of the page.

    Args:
        gr: gradio.
        segmenter: who answers.
        checkpoint: what it is called.
        threshold: where the slider stands first.

    Raises:
        NotFiniteError: the network fails on the example.
    """
    first = example(segmenter)

    def shown(found: Answer, at: float) -> tuple[Any, ...]:
        """What a new picture changes: state, input, status and results."""
        results = markup.outline(found, at), markup.maps(found), markup.numbers(found, at)
        return found, None, markup.status(found), *results

    def take(given: tuple[str, str] | None, at: float) -> tuple[Any, ...]:
        """Segment an uploaded picture; the file goes at once."""
        if given is None:
            return (gr.skip(),) * 6
        path, name = given
        try:
            return shown(answer(segmenter, path, name), at)
        except (ImageError, NotFiniteError) as error:
            return None, None, markup.error(str(error).replace(path, name)), "", "", ""
        # Memory of the GPU that is full is a RuntimeError.
        except (MemoryError, RuntimeError) as error:
            reason = f"{name}: cannot be segmented here ({first_line(error)}): make it smaller"
            return None, None, markup.error(reason), "", "", ""
        finally:
            _forget(Path(path))

    def move(found: Answer | None, at: float) -> tuple[Any, ...]:
        """What the threshold changes; the network does not run."""
        if found is None:
            return gr.skip(), gr.skip()
        return markup.outline(found, at), markup.numbers(found, at)

    _, _, status, outline, maps, numbers = shown(first, threshold)
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
        picture.upload(take, [picture, slider], changed, **{**quiet, "show_progress": "minimal"})
        button.click(lambda at: shown(first, at), [slider], changed, **quiet)
        slider.change(move, [state, slider], [drawn, told], trigger_mode="always_last", **quiet)
    return page


def _as_it_came(payload: Any) -> tuple[str, str] | None:
    """Path and name of an uploaded file, for gradio's image, which would decode it itself; None
    where there is none."""
    if payload is None or not payload.path:
        return None
    return payload.path, payload.orig_name or Path(payload.path).name


def _forget(upload: Path) -> None:
    """Remove an uploaded file, and the folder that gradio made for it."""
    with contextlib.suppress(OSError):
        upload.unlink()
        if not any(upload.parent.iterdir()):
            shutil.rmtree(upload.parent)
