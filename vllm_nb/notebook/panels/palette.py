"""The colours of all panels, by role, for light and dark pages: one table for CSS, for SVG and for the tests.

Series colours are those of Okabe and Ito (2008) and two more, told apart with any of the common colour-blindnesses; the
dark set is lightened until each stands out from a dark page. Colour never stands alone: shape, hatch, position or text
says it too.
"""

COLOURS: dict[str, tuple[str, str]] = {  # role -> light, dark
    "text": ("#1f2328", "#e6e9ed"),
    "muted": ("#59626c", "#a3adb8"),
    "grid": ("#d5dae0", "#3a424c"),
    "page": ("#ffffff", "#14181d"),
    "surface": ("#f4f6f8", "#20262d"),
    "focus": ("#0b57d0", "#8ab4f8"),
    "alert": ("#b3261e", "#ff8a80"),
    "series0": ("#0072b2", "#3d97d6"),
    "series1": ("#d55e00", "#ff8a3d"),
    "series2": ("#009e73", "#2fc79b"),
    "series3": ("#cc79a7", "#f0a8d0"),
    "series4": ("#e69f00", "#f0e442"),
    "series5": ("#56b4e9", "#a8dcff"),
    "series6": ("#4a2f7f", "#7d5fc9"),
    "series7": ("#6b7280", "#7d8793"),
}
SERIES = tuple(role for role in COLOURS if role.startswith("series"))


def series(number: int) -> str:
    """The role of the n-th thing of a kind; they repeat after len(SERIES)."""
    return SERIES[number % len(SERIES)]


_LIGHT = '[data-jp-theme-light="true"], [data-theme="light"], .vscode-light, .light'
_DARK = '[data-jp-theme-light="false"], [data-theme="dark"], .vscode-dark, .dark'
DARK_PAGES = f":is({_DARK})"  # selector of what says of itself that it is dark
SILENT_PAGES = f":root:not(:has({_DARK}, {_LIGHT})):not({_DARK}, {_LIGHT})"  # and of a page that doesn't say


def theme_css() -> str:
    """Custom properties `--vn-ROLE` on every element of class `vllm-nb`.

    A page that says whether it is dark (JupyterLab, nbconvert, VS Code, `.dark`, `data-theme`) is believed; any other
    follows the reader's system.
    """
    light, dark = (" ".join(f"--vn-{role}: {pair[theme]};" for role, pair in COLOURS.items()) for theme in (0, 1))
    return (
        f".vllm-nb {{ color-scheme: light; {light} }}\n"
        f"{DARK_PAGES} .vllm-nb {{ color-scheme: dark; {dark} }}\n"
        f"@media (prefers-color-scheme: dark) {{ {SILENT_PAGES} .vllm-nb {{ color-scheme: dark; {dark} }} }}\n"
    )
