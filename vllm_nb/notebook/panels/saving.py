"""What a reader can keep of a panel: a picture, or a page."""

from pathlib import Path

from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.text_file import write_text
from vllm_nb.notebook.panels.svg import Svg


class Savable:
    """Something that can be drawn without a kernel."""

    def picture(self) -> Svg:
        """What is shown now."""
        raise NotImplementedError

    def html(self) -> str:
        """What is shown now, for a page without widgets."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write what is shown now as SVG, or, for a name that ends in .html, as a page with its numbers. Raises
        VllmNbError for another name, and where it cannot be written."""
        path = Path(path).expanduser()
        if path.suffix not in (".svg", ".html"):
            raise VllmNbError(f"{path}: the name has to end in .svg or .html, which says what is written")
        return write_text(path, str(self.picture()) if path.suffix == ".svg" else self.html())
