"""The asset graph of the toy study: keys, dependencies, groups, versions, outputs and jobs."""

import dagster as dg
import pytest

from tests.support.shipped_studies import one_of_each
from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import AblationSpec, DistillSpec, EvaluationSpec, IfEvalSpec, ObjectiveSpec
from tokenuq_ml.stages.versions import code_version, study_fields
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.graph import assets_by_name, stage_groups
from tokenuq_pipeline.definitions import build_defs

DEPS = {
    "models/tiny": "",
    "datasets/toy": "",
    "files/extra": "",
    "datasets/extra": "files/extra",
    "study/tokenized_dataset": "datasets/extra datasets/toy models/tiny",
    "study/baseline_teacher": "models/tiny study/tokenized_dataset",
    "study/token_losses": "study/baseline_teacher study/tokenized_dataset",
    "study/teacher_hidden": "study/baseline_teacher study/tokenized_dataset",
    "study/token_uncertainty": "study/baseline_teacher study/tokenized_dataset",
    "study/reference_evaluation": "study/baseline_teacher study/tokenized_dataset",
    "study/uncertainty_analysis": "study/token_losses study/token_uncertainty",
    "study/mle/student": "models/tiny study/tokenized_dataset",
    "study/mle/curriculum": "study/mle/student study/token_losses",
    "study/mle/evaluation": "study/mle/student study/token_losses",
    "study/top/student": "study/teacher_hidden",
    "study/top/curriculum": "study/token_losses study/top/student",
    "study/top/evaluation": "study/token_losses study/top/student",
    "study/ablation_report": "datasets/extra datasets/toy study/mle/curriculum study/mle/evaluation "
    "study/reference_evaluation study/top/curriculum study/top/evaluation study/uncertainty_analysis",
}


def specs(config, home):
    return {spec.key.to_user_string(): spec for spec in build_defs(config, home).resolve_all_asset_specs()}


def inputs_of(asset):
    return {item.name: item.path for item in asset.inputs}


def deps_of(spec):
    return " ".join(sorted(dep.asset_key.to_user_string() for dep in spec.deps))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return specs(toy_config(), tmp_path_factory.mktemp("home"))


def test_keys_and_dependencies(toy):
    assert {key: deps_of(spec) for key, spec in toy.items()} == DEPS


def test_groups_tags_and_no_owners(toy):
    assert toy["models/tiny"].group_name == "models" and toy["datasets/toy"].group_name == "datasets"
    assert toy["files/extra"].group_name == "files"
    assert toy["study/token_losses"].group_name == "study" and toy["study/top/student"].group_name == "study/top"
    assert toy["study/top/student"].tags.items() >= {"study": "study", "ablation": "top"}.items()
    assert not any(list(spec.owners) for spec in toy.values())


def test_each_asset_says_what_it_is(toy):
    for key, spec in toy.items():
        assert spec.description and spec.kinds & {"python", "file"}, key
    for key, table in {
        "datasets/toy": "examples",
        "study/token_losses": "token_losses",
        "study/top/evaluation": "evaluations",
        "study/top/student": "training_log",
    }.items():
        columns = toy[key].metadata["dagster/column_schema"].columns
        assert [column.name for column in columns] == list(TABLES[table].columns)
        assert all(column.description for column in columns)
    assert "selections_columns" in toy["study/top/student"].metadata


def test_code_versions_are_the_stages_own(toy):
    config = toy_config()
    expected = code_version("token_losses", study_fields(config, config.studies[STUDY], "token_losses"))
    assert toy["study/token_losses"].code_version == expected


def test_a_changed_quantile_changes_one_student_and_the_report(toy, tmp_path):
    changed = specs(toy_config(quantile=0.5), tmp_path)
    assert {key for key in toy if toy[key].code_version != changed[key].code_version} == {
        "study/top/student",
        "study/ablation_report",
    }


@pytest.mark.parametrize(
    "ablation, states, expected",
    [
        ({"rest": {"distill": {"teacher": "baseline"}}}, "online", "study/baseline_teacher"),
        ({"rest": {"distill": {"teacher": "base"}}}, "cached", ""),
        ({"rest": "none", "scope": "dataset"}, "cached", "study/token_losses"),
    ],
)
def test_a_student_depends_on_what_it_uses(tmp_path, ablation, states, expected):
    config = toy_config(teacher_states=states)
    spec = AblationSpec(
        name="top", select={"by": "loss", "quantile": 0.5, "scope": ablation.pop("scope", "batch")}, **ablation
    )
    config.ablations["top"] = spec
    deps = deps_of(specs(config, tmp_path)["study/top/student"]).split()
    assert set(deps) - {"models/tiny", "study/tokenized_dataset"} == set(expected.split())


def test_distilling_the_selected_tokens_needs_the_teacher_too(tmp_path):
    config = toy_config()
    config.ablations["mle"] = AblationSpec(
        name="mle", select="all", selected=ObjectiveSpec(kind="distill", distill=DistillSpec())
    )
    assert "study/teacher_hidden" in deps_of(specs(config, tmp_path)["study/mle/student"])


def test_ifeval_prompts_are_a_dependency_of_the_evaluations(tmp_path):
    config = toy_config(evaluation=EvaluationSpec(ifeval=IfEvalSpec(dataset="extra")))
    found = specs(config, tmp_path)
    for key in ("study/reference_evaluation", "study/top/evaluation"):
        assert "datasets/extra" in deps_of(found[key])
    assets = assets_by_name(config)
    assert "generations" in assets["study/top/evaluation"].outputs
    assert {"generations_base", "generations_teacher"} < set(assets["study/reference_evaluation"].outputs)
    assert "examples/extra" in inputs_of(assets["study/reference_evaluation"])


def test_each_evaluation_adds_its_dataset_table_and_judge(tmp_path):
    """Each brings its dataset, its table and, where a model judges, that model and a check of the judge."""
    evaluation = EvaluationSpec(
        gsm8k={"dataset": "toy", "fewshot_dataset": "extra"},
        alpaca_eval={"dataset": "extra", "judge": {"local_model": "judge"}},
    )
    config = toy_config(evaluation=evaluation)
    config.models["judge"] = config.models["tiny"].model_copy(update={"name": "judge"})
    defs, found = build_defs(config, tmp_path), specs(config, tmp_path)
    assets = assets_by_name(config)
    answered = {"gsm8k_answers", "alpaca_eval_verdicts"}
    for key, suffixes in (("study/reference_evaluation", ("_base", "_teacher")), ("study/top/evaluation", ("",))):
        assert {"datasets/toy", "datasets/extra", "models/judge"} <= set(deps_of(found[key]).split())
        assert {f"{table}{suffix}" for table in answered for suffix in suffixes} < set(assets[key].outputs)
        assert "generations" not in {output.split("_")[0] for output in assets[key].outputs}
        assert inputs_of(assets[key])["judge"] == "models/judge"
        check = dg.AssetCheckKey(dg.AssetKey(key.split("/")), "judge_is_consistent")
        assert not defs.resolve_asset_graph().get_check_spec(check).blocking
    job = defs.resolve_job_def("study")
    assert dg.AssetKey(["models", "judge"]) in job.asset_layer.executable_asset_keys
    # What makes no interval is no matter of the correlations.
    assert assets["study/uncertainty_analysis"].fields["evaluation"] == EvaluationSpec().interval_fields()


def test_a_pairwise_comparison_reads_the_other_models_answers(tmp_path):
    """Ablation by ablation, with an edge, and a check of the judge where there is one."""
    judge = {"local_model": "tiny"}
    for versus, answering in (("top", "study/top/evaluation"), ("teacher", "study/reference_evaluation")):
        config = toy_config(evaluation=EvaluationSpec(pairwise={"dataset": "extra", "versus": versus, "judge": judge}))
        defs, found, assets = build_defs(config, tmp_path), specs(config, tmp_path), assets_by_name(config)
        judged = [f"study/{name}/evaluation" for name in config.studies["study"].ablations if name != versus]
        assert judged
        for key in judged:
            assert answering in deps_of(found[key]).split() and "datasets/extra" in deps_of(found[key])
            assert inputs_of(assets[key])["versus"] == f"pairwise_answers/study=study/ablation={versus}"
            assert "pairwise_verdicts" in assets[key].outputs and "pairwise_answers" not in assets[key].outputs
            assert assets[key].fields["versus"] == versus
            check = dg.AssetCheckKey(dg.AssetKey(key.split("/")), "judge_is_consistent")
            assert check in defs.resolve_asset_graph().asset_check_keys
        answers = "pairwise_answers" + ("_teacher" if versus == "teacher" else "")
        assert answers in assets[answering].outputs and "pairwise_verdicts" not in assets[answering].outputs
        check = dg.AssetCheckKey(dg.AssetKey(answering.split("/")), "judge_is_consistent")
        assert check not in defs.resolve_asset_graph().asset_check_keys
        assert "pairwise_answers_base" not in assets["study/reference_evaluation"].outputs


def test_local_data_of_lm_eval_are_files_of_the_evaluations(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    lm_eval = {"tasks": ["arc_easy"], "data": {"arc_easy": {"test": str(rows)}}}
    assets = assets_by_name(toy_config(evaluation=EvaluationSpec(lm_eval=lm_eval, ifbench={})))
    for key, suffix in (("study/reference_evaluation", "_teacher"), ("study/top/evaluation", "")):
        assert assets[key].files == {"lm_eval/arc_easy/test": str(rows)}
        assert {f"lm_eval_samples{suffix}", f"ifbench_answers{suffix}"} < set(assets[key].outputs)
        assert str(rows) not in str(assets[key].fields)


def test_paths_of_outputs_are_those_of_the_store_layout():
    assets = assets_by_name(toy_config())
    assert assets["models/tiny"].outputs == {"weights": "models/tiny"}
    assert assets["study/baseline_teacher"].outputs == {
        "adapter": "baseline_teacher/study=study/adapter",
        "training_log": "training_log/study=study/ablation=teacher",
        "plots": "plots/study=study/ablation=teacher/stage=baseline_teacher",
    }
    assert assets["study/reference_evaluation"].outputs == {
        "evaluations_base": "evaluations/study=study/ablation=base",
        "evaluations_teacher": "evaluations/study=study/ablation=teacher",
        "evaluation_examples_base": "evaluation_examples/study=study/ablation=base",
        "evaluation_examples_teacher": "evaluation_examples/study=study/ablation=teacher",
        "evaluation_tokens_base": "evaluation_tokens/study=study/ablation=base",
        "evaluation_tokens_teacher": "evaluation_tokens/study=study/ablation=teacher",
        "plots": "plots/study=study/stage=reference_evaluation",
    }
    assert assets["study/top/student"].outputs == {
        "adapter": "student/study=study/ablation=top/adapter",
        "snapshots": "student/study=study/ablation=top/snapshots",
        "selections": "selections/study=study/ablation=top",
        "training_log": "training_log/study=study/ablation=top",
        "plots": "plots/study=study/ablation=top/stage=student",
        "costs": "costs/study=study/ablation=top",
    }
    assert assets["study/ablation_report"].outputs == {"report": "ablation_report/study=study"}
    inputs = {"evaluations/base", "evaluations/teacher", "training_log/teacher", "selections/mle", "examples/toy"}
    inputs |= {"evaluation_examples/base", "evaluation_examples/teacher", "evaluation_examples/mle"}
    assert inputs < set(inputs_of(assets["study/ablation_report"]))


def test_no_two_outputs_share_a_path():
    config = one_of_each()
    paths = [path for asset in assets_by_name(config).values() for path in asset.outputs.values()]
    assert len(paths) == len(set(paths))


def test_each_study_has_one_job_with_all_assets_that_it_needs(tmp_path):
    defs = build_defs(toy_config(), tmp_path)
    job = defs.resolve_job_def(STUDY)
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == set(DEPS)
    checks = {f"{key.asset_key.to_user_string()}:{key.name}" for key in job.asset_layer.asset_graph.asset_check_keys}
    assert {
        "study/token_losses:one_row_per_response_token",
        "study/top/student:selected_share",
        "datasets/toy:no_question_in_two_splits",
        "study/top/evaluation:ood_kept",
    } < checks
    assert job.executor_def.name == dg.in_process_executor.name


def test_each_child_process_is_one_op(tmp_path):
    """Were the blocking checks to split an op, each part would start a torch process of its own."""
    job = build_defs(toy_config(), tmp_path).resolve_job_def(STUDY)
    ops = {node.name for node in job.nodes if not set(node.output_dict) <= {"asset_check"}}
    assert {group.op for group in stage_groups(toy_config())} <= {node.name for node in job.nodes}
    assert not any(name.rsplit("_", 1)[-1].isdigit() for name in ops)
