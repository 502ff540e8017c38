"""What `tokenuq export` reads of the store: a trained model that is complete and of the present configuration."""

from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.export import STAGE, export_asset, trained_asset
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.recorded_inputs import recorded_inputs
from tokenuq_pipeline.assets.shown_studies import config_of
from tokenuq_pipeline.automation.explain import explain
from tokenuq_pipeline.automation.manifest_staleness import ManifestReader
from tokenuq_pipeline.runtime.bucket_store import fetch
from tokenuq_pipeline.runtime.store import Store


@dataclass(frozen=True)
class Source:
    """A trained model of the store, and the request that exports it."""

    name: str
    """`study/ablation`."""
    asset: StageAsset
    store: Store
    quantization: str | None
    left_out: frozenset[str]
    """Inputs of the model card that are missing or stale."""
    warnings: tuple[str, ...]

    @property
    def base(self) -> Path:
        """Return the folder of the base model."""
        return self._place("model")

    @property
    def weights(self) -> Path:
        """Return the folder of the trained weights."""
        return self._place("weights")

    def request(self, folder: Path, work: Path) -> StageRequest:
        """Return the request of the program that fills `folder`.

        Args:
            folder: an empty folder.
            work: where the program may keep files.
        """
        read = [item for item in self.asset.inputs if item.name not in self.left_out]
        recorded = recorded_inputs(self.store, [self.asset])
        return StageRequest(
            entrypoint="export_model",
            assets={
                STAGE: AssetRequest(
                    fields=self.asset.fields, code_version=self.asset.code_version, outputs={"model": str(folder)}
                )
            },
            inputs={item.name: str(self.store.path(item.path)) for item in read},
            recorded={item.name: recorded[item.name] for item in read},
            work_dir=str(work),
        )

    def _place(self, name: str) -> Path:
        return self.store.path(next(item.path for item in self.asset.inputs if item.name == name))


def find_source(config: Config, store: Store, spec: ExportSpec, takes_stale: bool) -> Source:
    """Return a trained model of the store, with its files on this machine.

    Args:
        config: the configuration.
        store: the store.
        spec: what is exported.
        takes_stale: also a model that other inputs were trained on than those in the store.

    Raises:
        InputError: something was never made, is damaged, or is of another configuration; the message says what to do.
    """
    assets = assets_by_name(config_of(config, [spec.study]))
    asset, trained = export_asset(config, spec, needs_evaluations=False), "/".join(trained_asset(spec))
    ablation = "" if spec.is_of_teacher else f" --ablation {spec.ablation}"
    remedy = f"run `tokenuq run --study {spec.study}{ablation}`"
    for name in dict.fromkeys("/".join(path) for path in asset.reads if path not in asset.optional_reads):
        if sentence := store.damaged_manifest(name):
            raise InputError(sentence)
        if (why := store.incomplete_because(name)) is not None:
            made = "was never made" if store.read_manifest(name) is None else f"is incomplete: {why}"
            raise InputError(f"{name}: {made}; {remedy}")
    warnings = _require_current(store, assets[trained], config.studies[spec.study].model, remedy, takes_stale)
    left_out, more = _evaluations(store, assets, asset)
    for item in asset.inputs:
        if item.name not in left_out:
            folder = f"{item.path}/"
            fetch(store, "/".join(item.asset), lambda path, folder=folder: path.startswith(folder))
    quantization = config.studies[spec.study].quantization
    name = f"{spec.study}/{spec.ablation}"
    return Source(name, asset, store, quantization, frozenset(left_out), (*warnings, *more))


def _require_current(store: Store, trained: StageAsset, model: str, remedy: str, takes_stale: bool) -> list[str]:
    """Check that the weights are of the present configuration and base model; return what to warn of.

    Raises:
        InputError: they are not, or another input has changed and `takes_stale` is not set.
    """
    manifest, reason, base = (
        store.read_manifest(trained.name),
        ManifestReader(store).why_stale(trained),
        f"models/{model}",
    )
    assert manifest is not None
    shown = "" if reason is None else explain(reason, trained, store)
    if manifest.code_version != trained.code_version:
        raise InputError(f"{trained.name}: is of another configuration ({shown}); {remedy}, or restore its entry")
    if _trained_on(store, trained, base) != store.data_version(base):
        raise InputError(f"{trained.name}: was trained on another version of {base}; {remedy}")
    if reason is None:
        return []
    if not takes_stale:
        raise InputError(f"{trained.name}: is stale ({shown}); {remedy}, or add --stale to export it as it is")
    return [f"{trained.name}: is stale ({shown}), and is exported as it is"]


def _trained_on(store: Store, trained: StageAsset, base: str) -> str | None:
    """Return the version of the base model that weights were trained on.

    A teacher that was chosen among candidates does not read it, but they do.
    """
    own, *others = (store.read_manifest(name) for name in (trained.name, *map("/".join, trained.reads)))
    recorded = (manifest.input_data_versions for manifest in (own, *others) if manifest is not None)
    return next((versions[base] for versions in recorded if base in versions), None)


def _evaluations(store: Store, assets: dict[str, StageAsset], asset: StageAsset) -> tuple[set[str], list[str]]:
    """Return the inputs whose figures the model card cannot show, and a warning for each asset of theirs."""
    reader, left_out, warnings = ManifestReader(store), set(), []
    for path in sorted(asset.optional_reads):
        name = "/".join(path)
        if name not in assets:
            reason: str | None = "is not part of the study"
        elif store.read_manifest(name) is None:
            reason = "was never made"
        else:
            reason = reader.why_stale(assets[name])
        if reason is None:
            continue
        left_out |= {item.name for item in asset.inputs if item.asset == path}
        warnings.append(f"{name} {explain(reason, assets[name], store)}: the model card is without its figures")
    return left_out, warnings
