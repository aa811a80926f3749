"""Command `keras-aspp push`."""

from keras_aspp.cli.main import Parser


def run(arguments):
    """Uploads a model to the Hugging Face Hub."""
    parser = Parser(
        prog="keras-aspp push",
        description="Upload an exported folder or a workdir's model to the "
        "Hugging Face Hub, with its card and SHA-256 sums. Lists the files "
        "and their sizes before. Checkpoints, logs, images and the "
        "configuration are sent only with --include.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "directory", metavar="DIR", help="exported folder or workdir"
    )
    parser.add_argument(
        "address",
        metavar="hf://user/name",
        help="repository, created if needed; a folder in it may follow",
    )
    parser.add_argument(
        "--private", action="store_true", help="create a private repository"
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch, created if needed"
    )
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument(
        "--include",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="send these files of DIR too, such as preview.png, config.yaml",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="list what would be sent, and send nothing",
    )
    flags = parser.parse_args(arguments)
    from keras_aspp.export.push import push_model

    url = push_model(
        flags.directory,
        flags.address,
        revision=flags.revision,
        private=flags.private,
        message=flags.message,
        include=flags.include,
        dry_run=flags.dry_run,
    )
    if url:
        print(f"\ncommit  {url}")
    return 0
