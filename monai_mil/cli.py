"""``monai-mil``: what users do that is no verb of ``python -m monai.bundle``.

Only typer and rich are imported here; each command imports the rooms it needs when it runs, so that ``--help`` and
``embed`` start at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from monai_mil import __version__
from monai_mil.errors import MonaiMILError, SettingsError
from monai_mil.interrupts import answering_interrupts

if TYPE_CHECKING:
    from monai_mil.encoders import EncoderStatus
    from monai_mil.runs import Bundle, BundleRun

app = typer.Typer(
    name="monai-mil",
    epilog="[bold]Examples[/]\n\n"
    "monai-mil predict pathology_insight slides/ --out out\n\n"
    "monai-mil predict ct_insight scans/ --out out\n\n"
    "monai-mil train pathology_asmil cohort/ --out runs/asmil",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


EncoderName = Annotated[str, typer.Option(help="An encoder's name ('monai-mil doctor' lists them) or file.")]
Weights = Annotated[Path | None, typer.Option(help="Local weights of the encoder, safetensors or .pt.")]
Storage = Annotated[
    Literal["float16", "uint8"], typer.Option(help="How bags store features; uint8 takes half the space.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="What the encoder computes in; 'monai-mil doctor' says what bfloat16 gains here.",
        show_default="float32 on a CPU, bfloat16 on a GPU",
    ),
]
Device = Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1 ...")]
_TISSUE = "Tissue"
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace bags of other settings or of another source.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try those again that were set aside: the process died in them.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes on this machine; over 1 needs the extra 'scale'.")]


_GO_ON = "the same command goes on where it stopped"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"monai-mil {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Multiple-instance learning for whole-slide images and CT: slides or scans in, predictions and heatmaps out."""


def main() -> None:
    """Run the command line; an error the user caused is one line on stderr and exit code 1."""
    try:
        app()
    except MonaiMILError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False)
        sys.exit(1)


BundleName = Annotated[str, typer.Argument(help="A bundle's name ('monai-mil bundles' lists them) or folder.")]
CohortPlace = Annotated[
    Path, typer.Argument(help="The cohort's table, or the folder with cohort.csv and bags/.", metavar="COHORT")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the run writes.")]
Model = Annotated[
    Path | None, typer.Option(help="A training's folder, or a model.pt.", show_default="the bundle's own")
]
TrainedModel = Annotated[
    Path | None, typer.Option(help="The training's folder, or its model.pt.", show_default="--out")
]
Overlays = Annotated[
    list[str] | None,
    typer.Option("--with", help="Another config of the bundle over train.json: survival, anchor, paper ..."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="The table's label column; give it several times for several labels a case."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Run a bundle that does not come with monai-mil, unasked.")]
RunDevice = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...", show_default="a GPU if there is one")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, any key of the bundle's configs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the monai.bundle command that it stands for.")]


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "monai-mil predict pathology_insight slides/ --out out\n\n"
    "monai-mil predict pathology_insight slide.svs --out out --heatmaps png,geojson,tiff --mpp 0.25\n\n"
    "monai-mil predict ct_insight scans/ --out out --device cuda\n\n"
    "monai-mil predict pathology_asmil cohort.csv --split test --model runs/asmil --out out"
)
def predict(
    bundle: BundleName,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Slides or scans, folders of them, a folder of bags, or a cohort table.", metavar="INPUT..."
        ),
    ],
    out: Out,
    model: Model = None,
    heatmaps: Annotated[
        str | None,
        typer.Option(
            help="Formats, with commas: png, geojson, tiff, mask of slides; curve, montage, nifti, mask of scans; "
            "of both as DICOM objects: seg, fractional, pm, sc, sr, and ann of slides.",
            show_default="png,geojson or curve,montage,nifti",
        ),
    ] = None,
    no_heatmaps: Annotated[bool, typer.Option("--no-heatmaps", help="Write no heatmaps.")] = False,
    bags: Annotated[bool, typer.Option("--bags", help="Keep the features, in OUT/bags.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Read the slides or scans of a table even where bags/ lies beside it.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Only this split of a cohort table.")] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="Level-0 pixel size of slides in micrometres, whatever the files say."),
    ] = None,
    target_mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel to read slides at.", show_default="the encoder's"),
    ] = None,
    weights: Weights = None,
    device: RunDevice = None,
    settings: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever is done already.")] = False,
    retry: Retry = False,
    trust: Trust = False,
    dry_run: DryRun = False,
) -> None:
    """Slides or scans in; predictions, heatmaps and a report out. Run it again to go on where it stopped."""
    from monai_mil import runs

    given = {"split": split, "mpp": mpp, "target_mpp": target_mpp, "weights": None if weights is None else str(weights)}
    given |= {"device": None if device is None else f"$torch.device('{device}')"}
    formats = [] if no_heatmaps else None if heatmaps is None else [name for name in heatmaps.split(",") if name]
    run = runs.predict_run(
        runs.find_bundle(bundle),
        inputs,
        out,
        model=model,
        heatmaps=formats,
        raw=raw,
        settings={**_given(given), **runs.parsed_settings(settings or [])},
    )
    if dry_run:
        typer.echo(run.line)
        return
    _require_trust(run.bundle, trust)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if bags:
        run = runs.with_bags(run)
    with answering_interrupts(_GO_ON):
        outcome = runs.predict(run, console=console, overwrite=overwrite, retry=retry)
    runs.show_outcome(outcome, run.bundle, console)
    raise typer.Exit(code=0 if outcome.is_whole else 1)


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "monai-mil train pathology_asmil cohort/ --out runs/asmil\n\n"
    "monai-mil train mil_baselines cohort/ --out runs/clam --set method=clam_sb --set train::trainer::max_epochs=50\n\n"
    "monai-mil train pathology_insight cohort/ --out runs/grade --label grade\n\n"
    "monai-mil train mil_baselines cohort/ --out runs/survival --with survival"
)
def train(
    bundle: BundleName,
    cohort: CohortPlace,
    out: Out,
    overlays: Overlays = None,
    labels: Labels = None,
    device: RunDevice = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in OUT.")] = False,
    settings: Set = None,
    trust: Trust = False,
    dry_run: DryRun = False,
) -> None:
    """Train a bundle's network on labelled bags; classes, encoder and width are those of the cohort."""
    from monai_mil import runs

    given = {**_labelled(labels), **_device(device), **runs.parsed_settings(settings or [])}
    run = runs.train_run(
        runs.find_bundle(bundle),
        cohort,
        out,
        overlays=overlays or (),
        resume=resume,
        overwrite=overwrite,
        settings=given,
    )
    _run_or_show(run, trust, dry_run, "the same command with --resume goes on behind the last whole epoch")


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "monai-mil evaluate pathology_asmil cohort/ --out runs/asmil\n\n"
    "monai-mil evaluate pathology_asmil other/cohort.csv --model runs/asmil --out runs/other --split test"
)
def evaluate(
    bundle: BundleName,
    cohort: CohortPlace,
    out: Out,
    model: TrainedModel = None,
    overlays: Overlays = None,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    device: RunDevice = None,
    settings: Set = None,
    trust: Trust = False,
    dry_run: DryRun = False,
) -> None:
    """Measure a trained network on a split of a cohort: metrics.json, predictions.csv."""
    from monai_mil import runs

    given = {"split": split, **_device(device), **runs.parsed_settings(settings or [])}
    run = runs.evaluate_run(runs.find_bundle(bundle), cohort, out, model=model, overlays=overlays or (), settings=given)
    _run_or_show(run, trust, dry_run)


@app.command(epilog="[bold]Example[/]\n\nmonai-mil calibrate pathology_insight cohort/ --out runs/insight")
def calibrate(
    bundle: BundleName,
    cohort: CohortPlace,
    out: Out,
    model: TrainedModel = None,
    device: RunDevice = None,
    settings: Set = None,
    trust: Trust = False,
    dry_run: DryRun = False,
) -> None:
    """Choose a trained network's operating points on the validation split; they stand in its model.json."""
    from monai_mil import runs

    given = {**_device(device), **runs.parsed_settings(settings or [])}
    run = runs.calibrate_run(runs.find_bundle(bundle), cohort, out, model=model, settings=given)
    _run_or_show(run, trust, dry_run)


def _run_or_show(run: BundleRun, trust: bool, dry_run: bool, advice: str = "the same command begins anew") -> None:
    if dry_run:
        typer.echo(run.line)
        return
    _require_trust(run.bundle, trust)
    with answering_interrupts(advice):
        run.start()


def _require_trust(bundle: Bundle, trust: bool) -> None:
    """Ask before a bundle is run that did not come with the package: its configs are programs.

    Raises:
        SettingsError: there is nobody to ask.
    """
    if trust or bundle.is_shipped:
        return
    warning = f"bundle '{bundle.root}' does not come with monai-mil, and its configs are programs that run as you"
    if not _is_terminal():
        raise SettingsError(f"{warning}; read them, then run again with --trust")
    typer.confirm(f"{warning}. Run it?", abort=True, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that somebody gave."""
    return {name: value for name, value in settings.items() if value is not None}


def _device(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"device": f"$torch.device({name!r})"}


def _labelled(columns: list[str] | None) -> dict[str, Any]:
    if not columns:
        return {}
    return {"label_columns": columns} | ({"multi_label": True} if len(columns) > 1 else {})


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "monai-mil compare cohort/ --methods mil_baselines:abmil,mil_baselines:transmil,pathology_asmil --out compared\n\n"
    "monai-mil compare cohort/ --methods mil_baselines:abmil,my.json --grid optimizer::lr=0.01,0.001 --out compared\n\n"
    "monai-mil compare cohort/ --methods mil_baselines:abmil,mil_baselines:ilra --survival --workers 4 --out compared"
)
def compare(
    cohort: CohortPlace,
    methods: Annotated[
        list[str],
        typer.Option(
            "--methods",
            help="With commas, or several times: BUNDLE, BUNDLE:METHOD, BUNDLE:METHOD+OVERLAY, or a JSON file with "
            "bundle, name, method, overlays, settings, grid.",
        ),
    ],
    out: Out,
    folds: Annotated[int, typer.Option(min=3, help="Folds by patient, where the table has no column fold.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings on every fold.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Of every training.")] = 30,
    reference: Annotated[
        str | None, typer.Option(help="The method that the others are tested against.", show_default="the first")
    ] = None,
    survival: Annotated[bool, typer.Option("--survival", help="Labels are the columns time and event.")] = False,
    labels: Labels = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="KEY=VALUE,VALUE: tried in every run, chosen on validation.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="KEY=VALUE,VALUE, such as k_eval=10,100: finished models are evaluated with each."),
    ] = None,
    test_curve: Annotated[
        bool, typer.Option("--test-curve", help="Answer the test cases after every epoch too; it chooses nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine, each on one core.")] = 1,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to spread runs over.")] = None,
    device: RunDevice = None,
    settings: Set = None,
    trust: Trust = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command of every training.")] = False,
) -> None:
    """Train methods on the same folds and seeds and write one table. Run it again to go on where it stopped."""
    from monai_mil import runs
    from monai_mil.compare import compare, make_plan, read_competitors

    words = [word for entry in methods for word in entry.split(",") if word]
    competitors = read_competitors(words, dict(_values(entry) for entry in grid or ()))
    plan = make_plan(
        cohort,
        competitors,
        out,
        folds=folds,
        seeds=seeds,
        epochs=epochs,
        reference=reference,
        label_columns=labels or ["label"],
        survival=survival,
        settings={**_device(device), **runs.parsed_settings(settings or [])},
        test_curve=test_curve,
        sweep=None if sweep is None else _values(sweep),
    )
    if dry_run:
        for job in plan.jobs:
            typer.echo(job.training().line)
        return
    for competitor in competitors:
        _require_trust(competitor.bundle, trust)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with answering_interrupts(_GO_ON):
        rows = compare(plan, workers=workers, scheduler=dask, console=console)
    typer.echo((out / "table.md").read_text(encoding="utf-8"))
    typer.echo(f"{out / 'table.csv'}\n{out / 'comparison.html'}")
    raise typer.Exit(code=1 if all(row.runs == 0 for row in rows) else 0)


def _values(entry: str) -> tuple[str, tuple[Any, ...]]:
    """``KEY=VALUE,VALUE`` as the key and its values."""
    from monai_mil.runs import parsed_settings

    key, equals, values = entry.partition("=")
    if not equals or not values:
        raise SettingsError(f"'{entry}' is not KEY=VALUE,VALUE")
    return key, tuple(parsed_settings([f"{key}={value}"])[key] for value in values.split(","))


bundles_app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
app.add_typer(bundles_app, name="bundles", help="The bundles there are; copy one to edit it, or pack it.")


@bundles_app.callback(
    invoke_without_command=True,
    epilog="[bold]Examples[/]\n\nmonai-mil bundles\n\nmonai-mil bundles copy pathology_asmil my/bundles",
)
def bundles(context: typer.Context) -> None:
    """List the bundles with their task, input, encoder and figures."""
    if context.invoked_subcommand is not None:
        return
    from monai_mil import runs

    console = Console()
    for bundle in runs.shipped_bundles():
        facts = runs.describe_bundle(bundle)
        console.print(f"[bold]{bundle.name}[/]  {_escaped(facts.title)}", highlight=False)
        for name, text in facts.lines:
            console.print(f"  {name:<9} {_escaped(text)}", highlight=False)
    console.print("\nmonai-mil predict NAME INPUT... --out FOLDER; a bundle's folder works in place of its name.")


@bundles_app.command(
    "copy",
    epilog="[bold]Examples[/]\n\nmonai-mil bundles copy pathology_asmil my/bundles\n\n"
    "monai-mil bundles copy ct_insight apps/monaibundle/model --for monailabel",
)
def copy_bundle(
    name: BundleName,
    folder: Annotated[Path, typer.Argument(help="Where the copy goes: FOLDER/NAME.")],
    use: Annotated[
        Literal["monailabel"] | None,
        typer.Option(
            "--for", help="Make it fit MONAI Label's own applications (bundles of scans).", show_default="editing"
        ),
    ] = None,
) -> None:
    """Copy a bundle to edit its configs, or to use it elsewhere."""
    from monai_mil import runs

    copy = runs.copy_for_monailabel if use else runs.copy_bundle
    typer.echo(copy(runs.find_bundle(name), folder))


@bundles_app.command("pack", epilog="[bold]Example[/]\n\nmonai-mil bundles pack pathology_asmil archives")
def pack_bundle(
    name: BundleName,
    folder: Annotated[Path, typer.Argument(help="Where the archive goes.")],
) -> None:
    """Pack a bundle into FOLDER/NAME_vVERSION.zip and print its SHA-256, for monai.bundle download."""
    from monai_mil import runs

    archive, digest = runs.pack_bundle(runs.find_bundle(name), folder)
    typer.echo(f"{archive}\nsha256 {digest}")


@bundles_app.command("ensemble", epilog="[bold]Example[/]\n\nmonai-mil bundles ensemble compared --out ensembles")
def ensemble_bundle(
    run: Annotated[Path, typer.Argument(help="The folder of a comparison.", metavar="RUN")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where the bundle goes: FOLDER/NAME.")],
    method: Annotated[
        str | None, typer.Option(help="Which of its methods.", show_default="the only one there is")
    ] = None,
) -> None:
    """Make a bundle that answers as the mean of a method's networks of all folds and seeds."""
    from monai_mil import runs
    from monai_mil.compare import trained_models

    bundle, models = trained_models(run, method)
    typer.echo(runs.make_ensemble(bundle, models, folder))


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "monai-mil embed slides/ --out bags/\n\n"
    "monai-mil embed cohort.csv --out bags/ --encoder uni --weights uni.safetensors --device cuda\n\n"
    "monai-mil embed scan.svs --out bags/ --mpp 0.25\n\n"
    "monai-mil embed slides/ --out bags/ --levels 3"
)
def embed(
    slides: Annotated[list[Path], typer.Argument(help="Slides, folders of slides, or a cohort table (.csv, .json).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bags, one HDF5 file a slide.")],
    encoder: EncoderName = "texture",
    weights: Weights = None,
    spatial: Annotated[
        bool, typer.Option("--spatial", help="Keep the token map of each tile, not one vector.")
    ] = False,
    tile_size: Annotated[int | None, typer.Option(help="Tile side in pixels.", show_default="the encoder's")] = None,
    target_mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres per pixel to read at; of several levels the finest.", show_default="the encoder's"
        ),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Read tiles at so many levels, each twice as coarse; the bags go to level_0 (the finest), level_1 ...",
        ),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Overlap of neighbouring tiles, in pixels at the target mpp.")] = 0,
    min_tissue: Annotated[
        float, typer.Option(help="Smallest fraction of tissue of a tile that is kept.", rich_help_panel=_TISSUE)
    ] = 0.25,
    tissue_threshold: Annotated[
        float | None,
        typer.Option(
            help="Least share of light that tissue takes away, 0 to 1.",
            show_default="found for each slide",
            rich_help_panel=_TISSUE,
        ),
    ] = None,
    tissue_mpp: Annotated[
        float, typer.Option(help="Micrometres per pixel of the tissue mask.", rich_help_panel=_TISSUE)
    ] = 8.0,
    close_um: Annotated[
        float, typer.Option(help="Gaps up to this width in micrometres are closed.", rich_help_panel=_TISSUE)
    ] = 40.0,
    min_area_um2: Annotated[
        float, typer.Option(help="Smaller pieces of tissue are dropped, square micrometres.", rich_help_panel=_TISSUE)
    ] = 40_000.0,
    max_hole_um2: Annotated[
        float, typer.Option(help="Smaller holes in tissue are filled, square micrometres.", rich_help_panel=_TISSUE)
    ] = 40_000.0,
    pen: Annotated[bool, typer.Option(help="Leave ink out, or take it for tissue.", rich_help_panel=_TISSUE)] = True,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of your own tissue masks, <slide_id>.png or .geojson, to take instead.",
            rich_help_panel=_TISSUE,
        ),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures",
            help="Write a picture of every slide's tissue and tiles to pictures/.",
            rich_help_panel=_TISSUE,
        ),
    ] = False,
    mpp: Annotated[
        float | None,
        typer.Option(help="Level-0 pixel size in micrometres, whatever the files say.", show_default="the file's"),
    ] = None,
    series: Annotated[
        int | None,
        typer.Option(min=0, help="Which image of files that hold several.", show_default="the largest"),
    ] = None,
    plane: Annotated[
        int | None, typer.Option(min=0, help="Which focal plane of files that hold several.", show_default="the middle")
    ] = None,
    icc: Annotated[
        Literal["apply"] | None,
        typer.Option(help="Turn pixels into sRGB by the slides' ICC profiles.", show_default="pixels as stored"),
    ] = None,
    decoder: Annotated[
        Literal["exact", "scaled", "cucim-device"],
        typer.Option(
            help="How stored tiles become pixels: exact; JPEG scaled as it is decoded; on an NVIDIA GPU by cuCIM."
        ),
    ] = "exact",
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles the encoder sees at once.")] = 64,
    storage: Storage = "float16",
    device: Device = "cpu",
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    retry: Retry = False,
    workers: Workers = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to spread slides over.")] = None,
) -> None:
    """Turn slides into bags of features; run it again to go on where it stopped."""
    from monai_mil.embedding import embed_cohort
    from monai_mil.encoders import get_encoder
    from monai_mil.slides import TissueSettings

    with answering_interrupts(_GO_ON):
        report = embed_cohort(
            _table_or_listed(slides),
            out,
            get_encoder(encoder, spatial=spatial, weights=weights, device=device, dtype=dtype),
            tile_size=tile_size,
            target_mpp=target_mpp,
            overlap=overlap,
            levels=levels,
            min_tissue=min_tissue,
            tissue=TissueSettings(
                threshold=tissue_threshold,
                mpp=tissue_mpp,
                close_um=close_um,
                min_area_um2=min_area_um2,
                max_hole_um2=max_hole_um2,
                pen=pen,
            ),
            masks=masks,
            pictures=pictures,
            mpp=mpp,
            series=series,
            plane=plane,
            icc=icc,
            decoder=decoder,
            batch_size=batch_size,
            storage=storage,
            device=device,
            overwrite=overwrite,
            retry=retry,
            workers=workers,
            scheduler=scheduler,
        )
    raise typer.Exit(code=1 if report.failed else 0)


@app.command(
    "embed-scans",
    epilog="[bold]Examples[/]\n\n"
    "monai-mil embed-scans scans/ --out bags/\n\n"
    "monai-mil embed-scans cohort.csv --out bags/ --encoder vit_b16_ct --preset head_paper --device cuda\n\n"
    "monai-mil embed-scans chest.nii.gz --out bags/ --preset=-600/1500\n\n"
    "monai-mil embed-scans chest/ --out bags/ --encoder dinov2_vitl14_reg --spatial --preset insight --lungs threshold "
    "--depth 32\n\n"
    "A table has the columns scan_id and path, where a folder holds several series series_uid, and where a series has "
    "several acquisitions acquisition.",
)
def embed_scans(
    scans: Annotated[
        list[Path],
        typer.Argument(help="CT scans (a DICOM series' folder, NIfTI, MHA, NRRD), folders of them, or a cohort table."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bags, one HDF5 file a scan.")],
    encoder: EncoderName = "ct_texture",
    preset: Annotated[
        str,
        typer.Option(
            help="Windows of the slices: chest_rsna, head_rsna, abdomen_rsna, lung, insight, head_paper, chest_paper, "
            "abdomen_paper, center/width in HU, or a preset.json."
        ),
    ] = "chest_rsna",
    weights: Weights = None,
    spatial: Annotated[
        bool, typer.Option("--spatial", help="Keep the token map of each slice, not one vector.")
    ] = False,
    acquisition: Annotated[
        str | None,
        typer.Option(help="Which acquisition, phase or pass to take; a DICOM series without it fails. Or a column."),
    ] = None,
    allow_gaps: Annotated[bool, typer.Option("--allow-gaps", help="Take series with missing slices.")] = False,
    accept_units: Annotated[
        bool, typer.Option("--accept-units", help="Take scans whose values may be no Hounsfield units.")
    ] = False,
    lungs: Annotated[
        Literal["threshold", "lungmask"] | None,
        typer.Option(help="Blank what is outside the lungs, found by this method."),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Bring every scan to so many layers.")] = None,
    depth_mode: Annotated[
        Literal["resize", "middle"], typer.Option(help="How: resize between slices, or keep the middle ones.")
    ] = "resize",
    chunk: Annotated[int, typer.Option(min=1, help="Slices the encoder sees at once.")] = 64,
    storage: Storage = "float16",
    device: Device = "cpu",
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    retry: Retry = False,
    workers: Workers = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to spread scans over.")] = None,
) -> None:
    """Turn CT scans into bags of features, one instance a slice; run it again to go on where it stopped."""
    from monai_mil import embedding
    from monai_mil.encoders import get_encoder

    with answering_interrupts(_GO_ON):
        report = embedding.embed_scans(
            _table_or_listed(scans),
            out,
            get_encoder(encoder, spatial=spatial, weights=weights, device=device, dtype=dtype),
            preset,
            acquisition=acquisition,
            allow_gaps=allow_gaps,
            accept_units=accept_units,
            lungs=lungs,
            depth=depth,
            depth_mode=depth_mode,
            chunk=chunk,
            storage=storage,
            device=device,
            overwrite=overwrite,
            retry=retry,
            workers=workers,
            scheduler=scheduler,
        )
    raise typer.Exit(code=1 if report.failed else 0)


@app.command(epilog="[bold]Examples[/]\n\nmonai-mil check bags/\n\nmonai-mil check bags/ --remove")
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of bags; those in its folders too.")],
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the damaged bags, so that embedding again makes them anew.")
    ] = False,
) -> None:
    """Read every bag from end to end and compare it with the digests it carries."""
    from monai_mil.bags import check_bags

    bags = list(check_bags(folder))
    for bag in bags:
        if bag.error is not None:
            typer.echo(bag.error)
        if bag.damaged and remove:
            bag.path.unlink()
    wrong, damaged = sum(bag.error is not None for bag in bags), sum(bag.damaged for bag in bags)
    unknown = sum(not bag.digested for bag in bags)
    typer.echo(
        f"{len(bags)} bags: {len(bags) - wrong} can be read, {unknown} of them without digests; {damaged} are damaged"
        + (" and removed" if remove and damaged else "")
    )
    raise typer.Exit(code=1 if wrong else 0)


def _table_or_listed(places: list[Path]) -> Path | list[Path]:
    """The cohort table that stands alone, or the places."""
    tables = [path for path in places if path.suffix.lower() in (".csv", ".json")]
    if tables and len(places) > 1:
        raise typer.BadParameter(f"'{tables[0]}' is a cohort table: give it alone, or files and folders only")
    return tables[0] if tables else places


@app.command(
    epilog="[bold]Examples[/]\n\nmonai-mil report runs/predictions.csv --heatmaps runs/heatmaps\n\n"
    "monai-mil report runs/survival.json --time-unit months\n\n"
    "monai-mil report runs/predictions.csv --stability anchor=runs/attention_stability.json "
    "--stability none=plain/attention_stability.json"
)
def report(
    predictions: Annotated[
        Path, typer.Argument(help="predictions.csv, or survival.json, as a bundle's inference or evaluation writes it.")
    ],
    heatmaps: Annotated[
        Path | None, typer.Option(help="Folder of heatmaps.", show_default="heatmaps beside the predictions")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The HTML file.", show_default="report.html beside")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "Cohort report",
    time_unit: Annotated[str, typer.Option(help="Unit of the times of a survival report.")] = "time",
    stability: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=attention_stability.json of a training; several are compared.",
            show_default="the one beside the predictions",
        ),
    ] = None,
) -> None:
    """Write one HTML page with metrics, curves, heatmaps and the most attended tiles of a cohort."""
    from monai_mil.reports import write_report, write_survival_report

    survival = predictions.suffix.lower() == ".json"
    if survival and heatmaps is not None:
        raise typer.BadParameter("a survival report shows no heatmaps: leave --heatmaps out")
    out = out or predictions.with_name("report.html")
    runs = _named_files(stability) if stability else None
    if survival:
        write_survival_report(predictions, out, title=title, unit=time_unit, stability=runs)
    else:
        write_report(predictions, heatmaps or predictions.with_name("heatmaps"), out, title=title, stability=runs)
    typer.echo(out)


def _named_files(entries: list[str]) -> dict[str, Path]:
    """Files by name, of which no two are the same."""
    files: dict[str, Path] = {}
    for name, path in map(_named_file, entries):
        if name in files:
            raise typer.BadParameter(f"several runs are called '{name}': give NAME=FILE")
        files[name] = path
    return files


def _named_file(entry: str) -> tuple[str, Path]:
    """``NAME=FILE``; a file alone, which may have "=" in its path, is named by its folder."""
    name, equals, path = entry.partition("=")
    alone = Path(entry)
    return (name, Path(path)) if equals and not alone.exists() else (alone.resolve().parent.name, alone)


@app.command(epilog="[bold]Example[/]\n\nmonai-mil demo runs/demo --seed 1")
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything is written.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the cohort and of the training.")] = 0,
) -> None:
    """Make a synthetic cohort, embed it, train, evaluate, predict and report: the whole way in minutes."""
    from monai_mil.demo import run_demo

    run_demo(folder, seed=seed)


label_app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(label_app, name="label", help="Annotate in QuPath or the Digital Slide Archive, train, be asked.")


@label_app.command(
    "init",
    epilog="[bold]Example[/]\n\nmonai-mil label init my/app --bundles pathology_asmil,pathology_insight",
)
def label_init(
    folder: Annotated[Path, typer.Argument(help="The application's folder.")],
    bundles: Annotated[str, typer.Option(help="Bundles' names or folders, with commas.")],
) -> None:
    """Make the folder of a MONAI Label application with a copy of the bundles, which training there changes."""
    from monai_mil.label import init_project

    typer.echo(init_project(folder, [name for name in bundles.split(",") if name]))


@label_app.command("start", epilog="[bold]Example[/]\n\nmonai-mil label start my/app --studies slides/")
def label_start(
    folder: Annotated[Path, typer.Argument(help="The application's folder, made by 'monai-mil label init'.")],
    studies: Annotated[str, typer.Option(help="Folder of slides or scans, or the address of a remote store.")],
    host: Annotated[str, typer.Option(help="Where it listens; on this machine only unless you say so.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 8000,
) -> None:
    """Start the server that QuPath, the Digital Slide Archive and 3D Slicer connect to."""
    from monai_mil.label import start_command

    command = start_command(folder, studies, host=host, port=port)
    os.execv(command[0], command)


@app.command(epilog="[bold]Example[/]\n\nmonai-mil doctor")
def doctor() -> None:
    """Say what works here: libraries, slide readers, encoders, GPU, and what to install for what is missing."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from monai_mil.encoders import bfloat16_gain, encoder_report
    from monai_mil.slides import reader_report

    console = Console()
    console.print(
        f"[bold]monai-mil {__version__}[/], Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )
    if torch.cuda.is_available():
        console.print(f"GPU: {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    else:
        console.print("GPU: none that torch can use; everything runs on the CPU")
    gain = bfloat16_gain()
    advice = "try embed --dtype bfloat16 with encoders of timm" if gain > 1.2 else "leave embed --dtype alone"
    console.print(f"bfloat16 on this CPU: {gain:.1f} times as fast as float32 in a convolution; {advice}")

    packages = Table("package", "version", title="Libraries", title_justify="left")
    for name in ("torch", "monai", "pytorch-ignite", "numpy", "h5py", "timm", "torchvision", "dask"):
        try:
            packages.add_row(name, version(name))
        except PackageNotFoundError:
            packages.add_row(name, "[dim]not installed[/]")
    console.print(packages)

    readers = Table("reader", "works", "version", "note", title="Slide readers", title_justify="left")
    for reader, available, release, note in reader_report():
        readers.add_row(reader, _tick(available), release, _escaped(note))
    console.print(readers)
    console.print(_scan_readers())
    console.print(_label_server())
    console.print(_deploy_applications())

    encoders = Table("encoder", "ready", "width", "tile", "mpp", "weights", title="Encoders", title_justify="left")
    statuses = encoder_report()
    for status in statuses:
        card = status.card
        inputs = (str(card.tile_size), f"{card.target_mpp:g}") if "tiles" in card.reads else ("CT", "")
        encoders.add_row(card.name, _tick(status.ready), str(card.width), *inputs, _weights_place(status))
    console.print(encoders)
    for problem in sorted({status.problem for status in statuses if status.problem}):
        console.print(f"[red]missing:[/] {_escaped(problem)}")
    console.print(
        "download: fetched at first use. gated: request access on the Hugging Face page named, then 'hf auth login'. "
        "Without a network, pass the weights with --weights FILE. timm models by name and TorchScript files work too."
    )
    console.print(_bundles_and_widths())


def _bundles_and_widths() -> Table:
    """Which features the weights of each bundle take; a training takes those of any encoder."""
    from monai_mil import runs

    table = Table("bundle", "input", "encoder", "width", title="Bundles", title_justify="left")
    for bundle in runs.shipped_bundles():
        facts = runs.describe_bundle(bundle)
        table.add_row(bundle.name, facts.reads, facts.encoder or "any", str(facts.width or "any"))
    return table


def _scan_readers() -> Table:
    """What reads and measures CT here; ITK and lungmask are optional."""
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    table = Table("library", "works", "version", "note", title="CT", title_justify="left")
    for module, package, note, advice in (
        ("pydicom", "pydicom", "reads DICOM series and multi-frame CT", "pip install pydicom"),
        ("gdcm", "python-gdcm", "decodes JPEG and JPEG 2000 in DICOM", "pip install python-gdcm"),
        ("nibabel", "nibabel", "reads NIfTI", "pip install nibabel"),
        ("itk", "itk-io", "reads MHA and NRRD; resampling", "optional: pip install 'monai-mil[itk]'"),
        ("lungmask", "lungmask", "lung mask by its network", "optional: pip install lungmask"),
    ):
        try:
            import_module(module)
        except (ImportError, OSError):
            table.add_row(module, _tick(False), "", _escaped(f"{note}; {advice}"))
            continue
        try:
            release = version(package)
        except PackageNotFoundError:
            release = "unknown"
        table.add_row(module, _tick(True), release, note)
    return table


def _deploy_applications() -> str:
    """Whether MONAI Deploy's SDK works here, and what to do where it does not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"MONAI Deploy {version('monai-deploy-app-sdk')}: 'python -m monai_mil.deploy' works here"
    except PackageNotFoundError:
        return "MONAI Deploy: not in this environment; scripts/setup.sh deploy makes .venv-deploy, which has it"


def _label_server() -> str:
    """Whether MONAI Label works here, and what to do where it does not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"MONAI Label {version('monailabel')}: 'monai-mil label start' works here"
    except PackageNotFoundError:
        return "MONAI Label: not in this environment; scripts/setup.sh label makes .venv-label, which has it"


def _weights_place(status: EncoderStatus) -> str:
    if not status.card.needs:
        return "built in"
    if status.cached:
        return "on this machine"
    if status.card.package:
        return f"package {status.card.package.replace('_', '-')}"
    if status.card.url:
        return f"download: {status.card.url.rpartition('/')[2]}"
    return f"{'gated' if status.card.gated else 'download'}: {status.card.repo}"


def _tick(works: bool) -> str:
    return "[green]yes[/]" if works else "[red]no[/]"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
