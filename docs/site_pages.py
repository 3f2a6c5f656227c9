"""The pages of the site (`make docs`): this folder and the pages at the root, placed as in the repository.

So the links between them are the same on the site, in an editor and on a forge.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = (
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    "benchmarks/NOTES.md",
    "docs/*.md",
    "docs/*.png",
    "LICENSE",
    "docs/*.ipynb",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of this folder by those of the repository; the theme's own stay."""
    root = Path(config.docs_dir).parent
    shown = [file for file in files if Path(config.docs_dir) not in Path(file.abs_src_path or "/").parents]
    shown += [
        File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path))
        for pattern in PAGES
        for path in sorted(root.glob(pattern))
    ]
    return Files(shown)
