"""What configs may say differently, and why: the files of one bundle, the bundles in one file, training and validation.

``drift.Apart`` says how to read an entry. What stands here and is no longer so fails too, so the list stays true.
"""

from tests.bundles.drift import Apart

CT = ("ct_insight", "ct_normal_guidance")
INSIGHT = ("ct_insight", "pathology_insight")
VOLUMES = ("ct_insight",)
GUIDANCE = ("ct_normal_guidance",)
BASELINES = ("mil_baselines",)
ASMIL = ("pathology_asmil",)
HAGMIL = ("pathology_hagmil",)
SURVIVAL = (*BASELINES, *ASMIL)
BY_LOSS = (*INSIGHT, *HAGMIL)  # the epoch with the lowest validation loss is kept
WITH_METHODS = (*GUIDANCE, *BASELINES)

# The files of one bundle; scope: bundles.
FILES = [
    # Prediction needs no table, no labels and no metrics.
    Apart(("inference",), ("cohort_file",), "bags need no table to be predicted"),
    Apart(("inference",), ("encoder", "in_channels"), "the network's, which training takes from its bags"),
    Apart(("inference",), ("grid",), "the network's, which training takes from its bags", INSIGHT),
    Apart(
        ("inference", "inference_survival"), ("cohort::_disabled_", "cohort::unlabelled"), "nor labels, if there is one"
    ),
    Apart(("inference", "inference_survival", "survival"), ("cohort::must_exist",), "a training can be looked into"),
    Apart(
        ("inference", "inference_survival"),
        ("cohort::leave_out",),
        "every case that cannot be read is named, asked or not",
    ),
    Apart(("evaluate",), ("broken_bags::splits",), "the split of choice"),
    Apart(("calibrate",), ("broken_bags::splits",), "the split it is done on"),
    Apart(("evaluate", "calibrate"), ("validate::handlers::@broken_bags",), "in training the trainer tells them"),
    Apart(("inference",), ("imports::$import os", "imports::$import monai"), "its expressions need neither"),
    Apart(("inference",), ("split",), "all cases, unless one split is asked for"),
    Apart(
        ("inference",),
        ("validate::dataset::_target_", "validate::dataset::output_dir"),
        "a case that cannot be read is named, and the others are done",
    ),
    Apart(
        ("inference",),
        ("validate::dataset::cache_rate", "validate::dataset::progress", "validate::dataloader::batch_size"),
        "cases are read once, one by one",
        GUIDANCE,
    ),
    Apart(("inference",), ("validate::dataset::data",), "the cases of a folder, or of a table"),
    Apart(("evaluate",), ("validate::dataset::data",), "the split of choice"),
    Apart(
        ("inference",),
        ("validate::evaluator::key_val_metric", "validate::evaluator::additional_metrics"),
        "no labels, no metrics",
    ),
    Apart(("inference",), ("validate::evaluator::metric_cmp_fn",), "no labels, no metrics", (*BY_LOSS, *BASELINES)),
    Apart(
        ("evaluate",),
        ("validate::key_metric", "validate::additional_metrics", "validate::evaluator::metric_cmp_fn"),
        "the loss chose the epoch; what is reported is AUROC",
        BY_LOSS,
    ),
    Apart(
        ("evaluate",),
        ("validate::evaluator::key_val_metric", "validate::evaluator::additional_metrics"),
        "figures are called by the split of choice",
    ),
    # What is attached and run is what a config is for.
    Apart(("evaluate", "calibrate"), ("run",), "the trained network, no training"),
    Apart(("inference",), ("run",), "prediction"),
    Apart(("inference_heatmap",), ("run",), "prediction with heatmaps"),
    Apart(("localise",), ("run",), "evaluation of heatmaps"),
    # What a model knows of itself.
    Apart(
        ("evaluate", "calibrate", "inference", "inference_survival"),
        ("cohort::trained",),
        "a model has a fold of its own, which another cohort may lack",
    ),
    Apart(
        ("evaluate", "calibrate", "inference"),
        ("trained::_target_", "trained::resume", "trained::pretrained"),
        "a model that is there; training may begin without, or with another's",
    ),
    Apart(("inference",), ("trained::path",), "the model of choice, not the one just trained"),
    Apart(("evaluate", "calibrate"), ("bag_facts",), "another cohort may have no training split"),
    Apart(("inference",), ("encoder_digest",), "the model's alone"),
    Apart(("inference",), ("initialize::$monai.utils.set_determinism(@seed)",), "nothing is drawn"),
    Apart(
        ("evaluate", "multi_gpu_evaluate", "inference"),
        ("initialize::$cohorts.check_patients(@cohort, @split, @bag_of, @patient_level)",),
        "results of patients",
    ),
    Apart(
        ("evaluate", "calibrate", "inference"),
        ("validate::handlers::CheckpointLoader",),
        "training has its own weights",
    ),
    Apart(
        ("inference",),
        ("validate::handlers::CheckpointLoader::load_path",),
        "the model of choice, not the one just trained",
    ),
    Apart(
        ("evaluate", "calibrate", "inference"),
        ("validate::handlers::TensorBoardStatsHandler",),
        "a single epoch is no curve",
    ),
    Apart(("inference",), ("validate::handlers::StatsHandler",), "no metrics to print"),
    Apart(
        ("evaluate",), ("validate::handlers::MetricsSaver", "validate::handlers::@report_saver"), "figures of a split"
    ),
    Apart(("evaluate", "inference"), ("validate::handlers::@prediction_saver",), "a row for every case"),
    Apart(("evaluate", "inference"), ("validate::handlers::@slice_saver",), "scores of the slices", CT),
    Apart(("inference",), ("slice_saver::algorithm",), "DICOM objects are of predictions", CT),
    Apart(("evaluate",), ("validate::handlers::@slice_report_saver",), "figures of the slices", CT),
    Apart(("calibrate",), ("validate::handlers::@operating_point_saver",), "what calibration is for"),
    Apart(
        ("inference",),
        ("validate::handlers::@heatmap_saver",),
        "the map is the method's answer",
        ("pathology_insight",),
    ),
    Apart(
        ("evaluate", "calibrate", "inference"),
        ("validate::handlers::@attention_stability",),
        "it compares epochs",
        ASMIL,
    ),
    Apart(
        ("inference_monailabel",),
        ("validate::evaluator::postprocessing",),
        "tables need the answer itself, before it is a label map",
        CT,
    ),
    # Pixels in place of bags.
    Apart(("inference_slides", "inference_scans"), ("datalist",), "slides or scans in place of bags"),
    Apart(("inference_slides",), ("validate::preprocessing",), "tiles are embedded on the way"),
    Apart(
        ("inference_scans",),
        ("validate::preprocessing::transforms::LoadBagd", "validate::preprocessing::transforms::EmbedScand"),
        "slices are embedded on the way",
    ),
    Apart(
        ("inference_slides",),
        ("validate::inferer", "validate::evaluator::prepare_batch"),
        "the network has answered while the slide was read",
        ("pathology_insight", *HAGMIL),
    ),
    Apart(("inference",), ("tile_size",), "what the shipped weights were trained on; training takes any", HAGMIL),
    Apart(("inference",), ("network",), "nothing is frozen"),
    Apart(("inference",), ("chosen",), "a recipe is for training", BASELINES),
    # Several processes.
    Apart(("multi_gpu_train", "multi_gpu_evaluate"), ("device",), "a GPU for every process"),
    Apart(
        ("multi_gpu_train", "multi_gpu_evaluate"),
        (
            "initialize::$dist.init_process_group(backend='nccl' if torch.cuda.is_available() else 'gloo')",
            "initialize::$torch.cuda.set_device(@device) if torch.cuda.is_available() else None",
        ),
        "processes find each other",
    ),
    Apart(("multi_gpu_train",), ("network",), "one network in every process, its gradients averaged"),
    Apart(
        ("multi_gpu_train",), ("train::dataloader::shuffle", "train::dataloader::sampler"), "a sampler that shuffles"
    ),
    Apart(("multi_gpu_train",), ("train::dataloader::drop_last",), "a batch of the process's own share", GUIDANCE),
    # The whole output of a network where its attention is wanted.
    Apart(
        ("evaluate", "inference", "slice_supervised"),
        ("validate::inferer", "validate::postprocessing::transforms::UnpackOutputd"),
        "slice scores are wanted",
        GUIDANCE,
    ),
    Apart(
        ("anchor", "localise", "inference_heatmap", "inference_survival", "survival"),
        ("validate::inferer",),
        "attention is wanted, or logits before their softmax",
        BASELINES,
    ),
    Apart(("anchor", "localise"), ("validate::postprocessing",), "attention is wanted", BASELINES),
    Apart(("inference",), ("validate::inferer", "validate::postprocessing"), "logits are enough", ASMIL),
    Apart(("inference_heatmap",), ("validate::postprocessing",), "the saver takes the whole output", SURVIVAL),
    Apart(("grad_cam",), ("validate::inferer", "map"), "another map is evaluated"),
    Apart(("grad_cam",), ("map_threshold",), "it holds no ranks", HAGMIL),
    # Networks that see a scan as one volume.
    Apart(
        ("volume", "inference_volume"),
        ("network_def", "threshold"),
        "another network, which says no threshold of its own",
        VOLUMES,
    ),
    Apart(
        ("volume", "voxel_supervised"),
        ("loss::terms::decoupling", "loss::weights"),
        "the decoupling is INSIGHT's",
        VOLUMES,
    ),
    Apart(
        ("volume",),
        ("train::postprocessing::transforms::Lambdad", "train::postprocessing::transforms::UnpackOutputd"),
        "the answer is a logit",
        VOLUMES,
    ),
    Apart(
        ("volume", "inference_volume"),
        ("validate::evaluator::prepare_batch",),
        "the network does not fetch tokens itself",
        VOLUMES,
    ),
    Apart(("volume",), ("train::trainer::prepare_batch",), "the network does not fetch tokens itself", VOLUMES),
    Apart(
        ("voxel_supervised",),
        (
            "method",
            "class_balance::classes",
            "loss::terms::bag",
            "loss::terms::voxels",
            "train::preprocessing::transforms::ScanTruthd",
            "train::key_metric",
            "train::trainer::prepare_batch",
        ),
        "voxels are learned, not scans",
        VOLUMES,
    ),
    # Slice labels.
    Apart(
        ("evaluate", "slice_supervised"),
        ("validate::preprocessing::transforms::SliceLabelsd",),
        "slices are evaluated, where their labels are known",
        CT,
    ),
    Apart(
        ("slice_supervised",),
        (
            "method",
            "network_def",
            "loss::terms::bag",
            "loss::terms::guidance",
            "loss::terms::slices",
            "class_balance::classes",
            "loss::weights::guidance",
            "train::preprocessing::transforms::SliceLabelsd",
            "train::postprocessing",
            "train::key_metric",
            "train::trainer::prepare_batch",
            "validate::key_metric",
        ),
        "trained by the labels of slices",
        GUIDANCE,
    ),
    # Survival.
    Apart(
        ("survival", "inference_survival"),
        (
            "class_names",
            "cohort::_target_",
            "cohort::labels",
            "cohort::classes",
            "cohort::time",
            "cohort::event",
            "validate::postprocessing",
        ),
        "the outputs are bins of time",
        SURVIVAL,
    ),
    Apart(
        ("survival",),
        ("bag_loss", "class_balance::classes", "train::key_metric", "train::postprocessing", "validate::key_metric"),
        "learnt from times and events",
        SURVIVAL,
    ),
    Apart(("survival",), ("validate::additional_metrics",), "learnt from times and events", ASMIL),
    Apart(("survival",), ("time_edges",), "made of the training split, then read", SURVIVAL),
    Apart(("inference_survival",), ("time_bins_file",), "beside the model of choice", SURVIVAL),
    Apart(("evaluate_survival",), ("report_saver",), "figures of survival", SURVIVAL),
    Apart(
        ("evaluate_survival", "inference_survival"), ("prediction_saver",), "risks in place of probabilities", SURVIVAL
    ),
    Apart(("survival", "inference_survival"), ("task",), "the methods' own variants for follow-up", BASELINES),
    # Overlays that change what is learnt.
    Apart(("anchor",), ("loss", "train::inferer"), "the anchor is a term of the loss", BASELINES),
    Apart(("anchor",), ("validate::handlers::@attention_stability",), "what the anchor is for", BASELINES),
    Apart(
        ("lipn",),
        ("method", "chosen", "network_def", "method_loss", "method_transforms"),
        "a light network over one method's, taught by it",
        BASELINES,
    ),
    Apart(
        ("lipn",),
        tuple(f"shared_recipe::{key}" for key in ("optimizer", "lr", "schedule", "max_epochs", "patience", "select")),
        "the authors' recipe for it",
        BASELINES,
    ),
    Apart(
        ("mnist_bags",),
        (
            "in_channels",
            "class_names",
            "encoder",
            "encoder_digest",
            "best_model::training_data",
            "method",
            "chosen",
            "network_def",
            "optimizer::_target_",
            "optimizer::lr",
            "optimizer::betas",
            "optimizer::weight_decay",
            "lr_scheduler::_target_",
            "lr_scheduler::T_max",
            "lr_scheduler::factor",
            "train::preprocessing",
            "train::dataset::data",
            "train::trainer::max_epochs",
            "validate::preprocessing",
            "validate::dataset::data",
        ),
        "pictures are the instances, and the recipe is that of Ilse et al.",
        BASELINES,
    ),
]


def _load(step: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"{step}::preprocessing::transforms::LoadBagd::{key}" for key in keys)


def _embed(name: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"validate::preprocessing::transforms::{name}::{key}" for key in keys)


_CHECKS = tuple(
    f"initialize::$training.check_labels(@class_names, @label_columns{multi})" for multi in ("", ", @multi_label")
)
_FITS = tuple(
    f"initialize::$training.fit_weights(@network, @trained, @model_settings{methods})" for methods in ("", ", @methods")
)


def _settings(*keys: str) -> tuple[str, ...]:
    return tuple(f"model_settings::{key}" for key in keys)


# The bundles in one file; scope: files.
TRAIN = ("train",)
BOTH = ("train", "inference")
EVERY = (*BOTH, "evaluate", "multi_gpu_train", "multi_gpu_evaluate")
BUNDLES = [
    # The data.
    Apart(CT, ("class_names",), "scans are negative or positive", BOTH),
    Apart(CT, ("bag_of",), "cases are called scans", BOTH),
    Apart(GUIDANCE, ("cohort::ordered",), "slices of one scan, in their order", BOTH),
    Apart(("ct_insight",), ("bag_facts",), "tokens of slices", ("train",)),
    Apart(GUIDANCE, ("bag_facts",), "vectors of slices", ("train",)),
    Apart(("pathology_insight",), ("bag_facts",), "tokens of tiles", ("train",)),
    Apart(("ct_insight",), ("encoder", "in_channels", "grid"), "tokens of slices", ("inference",)),
    Apart(GUIDANCE, ("encoder", "in_channels"), "vectors of slices", ("inference",)),
    Apart(("pathology_insight",), ("in_channels",), "tokens of tiles", ("inference",)),
    Apart(HAGMIL, ("bag_facts",), "a slide's bags are found by the coarsest", ("train", "evaluate", "calibrate")),
    Apart(HAGMIL, ("broken_bags::bag_dir", "broken_bags::levels"), "a bag has a file of every level", TRAIN),
    Apart(GUIDANCE, ("preset",), "each method prepares slices in its own way", BOTH),
    Apart(CT, ("datalist",), "cases are called scans", ("inference",)),
    Apart(HAGMIL, ("datalist",), "a slide's bags are found by the coarsest", ("inference",)),
    Apart(HAGMIL, ("train::dataset::data",), "a slide's bags are found by the coarsest", TRAIN),
    Apart(HAGMIL, ("validate::dataset::data",), "a slide's bags are found by the coarsest", ("train", "evaluate")),
    Apart(
        GUIDANCE,
        tuple(
            f"{step}::dataset::{key}"
            for step in ("train", "validate")
            for key in ("_target_", "cache_rate", "progress")
        ),
        "small bags may be kept in memory",
        TRAIN,
    ),
    Apart(
        GUIDANCE,
        ("train::dataloader::batch_size", "train::dataloader::drop_last", "validate::dataloader::batch_size"),
        "the method learns from batches of 64",
        TRAIN,
    ),
    Apart(
        (*INSIGHT, *GUIDANCE, *HAGMIL),
        ("train::preprocessing::transforms::SampleInstancesd",),
        "bags are small, stay on disk, or are trees",
        TRAIN,
    ),
    Apart(INSIGHT, _load("train", "grid", "mapped"), "tokens stay on disk", TRAIN),
    Apart(INSIGHT, _load("validate", "grid", "mapped"), "tokens stay on disk", BOTH),
    Apart(CT, _load("train", "preset"), "slices have a preset", TRAIN),
    Apart(CT, _load("validate", "preset"), "slices have a preset", BOTH),
    Apart(("ct_insight",), _load("train", "depth", "depth_mode", "lungs"), "layers, of lungs", TRAIN),
    Apart(("ct_insight",), _load("validate", "depth", "depth_mode", "lungs"), "layers, of lungs", (*BOTH, "evaluate")),
    Apart(
        ("ct_insight",),
        tuple(f"algorithm::settings::{key}" for key in ("depth", "depth_mode", "lungs")),
        "layers, of lungs",
        ("inference",),
    ),
    Apart(
        HAGMIL, ("algorithm::settings::reading::tile_size",), "its levels have tiles of one size", ("inference_slides",)
    ),
    Apart(("ct_insight",), _load("validate", "grid", "mapped"), "tokens stay on disk", ("evaluate",)),
    Apart(HAGMIL, _load("train", "_target_", "levels", "tile_size"), "bags of several magnifications", TRAIN),
    Apart(HAGMIL, _load("validate", "_target_", "levels", "tile_size"), "bags of several magnifications", BOTH),
    # The method.
    Apart(GUIDANCE, ("method", "methods"), "methods of its own", BOTH),
    Apart(GUIDANCE, ("model_settings::multi_label",), "one label of a scan", BOTH),
    Apart(GUIDANCE, _CHECKS, "one label of a scan", (*EVERY, "calibrate")),
    Apart(GUIDANCE, ("class_balance::multi_label",), "one label of a scan", TRAIN),
    Apart((*INSIGHT, *GUIDANCE), ("class_balance::one_output",), "an output for two classes", TRAIN),
    Apart(INSIGHT, ("model_settings::grid",), "tokens", BOTH),
    Apart(CT, ("model_settings::preset",), "slices have a preset", BOTH),
    Apart(WITH_METHODS, ("model_settings::method",), "one of several methods", BOTH),
    Apart(BASELINES, ("model_settings::widths",), "widths of the method's file", BOTH),
    Apart(BASELINES, ("train::handlers::MethodHandlers",), "the method may want to be watched", TRAIN),
    Apart(
        BASELINES,
        ("train::preprocessing::transforms::@method_transforms",),
        "the method may want more of a bag",
        TRAIN,
    ),
    Apart(
        BASELINES,
        ("validate::preprocessing::transforms::@method_transforms",),
        "the method may want more of a bag",
        (*BOTH, "inference_slides"),
    ),
    Apart(ASMIL, _settings("hidden_dim", "tokens"), "the method's network", BOTH),
    Apart(
        HAGMIL, _settings("levels", "hidden_dims", "instance_channels", "attention_dim"), "the method's network", BOTH
    ),
    Apart(GUIDANCE, ("network_def",), "one of several methods", BOTH),
    Apart(BASELINES, ("network_def",), "a method has a file of its own", BOTH),
    Apart((*INSIGHT, *GUIDANCE), ("probability_def::exclusive",), "an output for two classes", ("inference",)),
    Apart(
        INSIGHT,
        ("validate::postprocessing::transforms::UnpackOutputd::sigmoid",),
        "the network's own answer is a probability",
        BOTH,
    ),
    Apart(WITH_METHODS, _FITS, "one of several methods", (*EVERY, "calibrate")),
    Apart(INSIGHT, ("network_def",), "the method's network", BOTH),
    Apart(
        ("ct_insight",),
        ("network_def::norm",),
        "a scale and shift for each of 37 x 37 tokens would be too much to ship",
        BOTH,
    ),
    Apart(HAGMIL, ("network_def",), "the method's network", BOTH),
    Apart(INSIGHT, ("loss::terms", "loss::weights"), "the method's loss", TRAIN),
    Apart(GUIDANCE, ("loss::terms", "loss::weights"), "the method's loss", TRAIN),
    Apart(BASELINES, ("loss",), "the loss of the method of choice", TRAIN),
    Apart(HAGMIL, ("loss",), "a loss of every level", TRAIN),
    Apart(HAGMIL, ("label_smoothing",), "as published", TRAIN),
    # The recipe.
    Apart(
        GUIDANCE,
        tuple(f"optimizer::{key}" for key in ("_target_", "lr", "momentum", "weight_decay")),
        "as published",
        TRAIN,
    ),
    Apart(INSIGHT, ("optimizer::_target_", "optimizer::weight_decay"), "as published", TRAIN),
    Apart(
        BASELINES,
        (
            *(f"optimizer::{key}" for key in ("_target_", "lr", "weight_decay")),
            *(f"lr_scheduler::{key}" for key in ("_target_", "T_max")),
            "train::trainer::max_epochs",
            "early_stop::patience",
            "validate::evaluator::key_val_metric",
            "validate::evaluator::additional_metrics",
            "validate::evaluator::metric_cmp_fn",
            "best_model::mode",
        ),
        "the recipe of choice",
        TRAIN,
    ),
    Apart(HAGMIL, ("optimizer::lr",), "as published", TRAIN),
    Apart(GUIDANCE, ("train::trainer::max_epochs",), "as published", TRAIN),
    Apart(HAGMIL, ("train::trainer::max_epochs", "train::trainer::accumulation_steps"), "as published", TRAIN),
    Apart(HAGMIL, ("amp",), "selection of tiles wants float32", BOTH),
    Apart(HAGMIL, ("early_stop::patience",), "as published", TRAIN),
    # The steps of training.
    Apart(INSIGHT, ("train::trainer::prepare_batch",), "bags stay on disk and come with a mask of tokens", TRAIN),
    Apart(INSIGHT, ("validate::evaluator::prepare_batch",), "bags stay on disk and come with a mask of tokens", BOTH),
    Apart(INSIGHT, ("network::device_ids",), "bags stay on disk", ("multi_gpu_train",)),
    Apart(GUIDANCE, ("train::trainer::prepare_batch",), "guidance may act on positions in mm", TRAIN),
    Apart(ASMIL, ("train::inferer", "train::handlers::AnchorHandler"), "the anchor", TRAIN),
    Apart(
        INSIGHT,
        tuple(
            f"train::postprocessing::transforms::{each}" for each in ("Lambdad::func", "CastToTyped", "Activationsd")
        ),
        "the network gives probabilities",
        TRAIN,
    ),
    Apart(
        INSIGHT,
        tuple(f"validate::postprocessing::transforms::{each}" for each in ("CastToTyped", "Activationsd")),
        "the network gives probabilities",
        BOTH,
    ),
    Apart(
        GUIDANCE,
        tuple(f"train::postprocessing::transforms::Activationsd::{key}" for key in ("sigmoid", "softmax")),
        "one label",
        TRAIN,
    ),
    Apart(
        GUIDANCE,
        tuple(f"validate::postprocessing::transforms::Activationsd::{key}" for key in ("sigmoid", "softmax")),
        "one label",
        BOTH,
    ),
    Apart(
        WITH_METHODS,
        ("validate::inferer", "validate::postprocessing::transforms::UnpackOutputd"),
        "logits are enough to validate",
        TRAIN,
    ),
    Apart(
        SURVIVAL,
        ("validate::inferer", "validate::postprocessing::transforms::UnpackOutputd"),
        "logits are enough to predict; heatmaps have a config",
        ("inference",),
    ),
    Apart(
        GUIDANCE,
        ("train::handlers::StatsHandler::iteration_log", "train::handlers::TensorBoardStatsHandler::iteration_log"),
        "a step is 64 bags",
        TRAIN,
    ),
    Apart((*ASMIL, *GUIDANCE), ("train::handlers::GradientClip",), "as published", TRAIN),
    Apart(GUIDANCE, ("train::handlers::GradientClip::max_norm",), "as published", TRAIN),
    Apart(GUIDANCE, ("train::handlers::StopOnNaN",), "as published", TRAIN),
    Apart((*INSIGHT, *GUIDANCE), ("train::handlers::SkipNonFinite",), "their losses are bounded, or StopOnNaN", TRAIN),
    Apart(SURVIVAL, ("train::handlers::LrScheduleHandler", "checkpointer::objects::lr_scheduler"), "a schedule", TRAIN),
    Apart(ASMIL, ("train::handlers::LrScheduleHandler::epoch_level",), "a step every bag, as published", TRAIN),
    # Which epoch is kept.
    Apart(WITH_METHODS, ("validate::key_metric",), "AUROC chooses the epoch", TRAIN),
    Apart(WITH_METHODS, ("validate::additional_metrics::val_auroc",), "AUROC is the key metric", TRAIN),
    Apart(
        ASMIL,
        ("validate::key_metric", "validate::additional_metrics::val_macro_f1"),
        "macro-F1 and AUROC choose together",
        TRAIN,
    ),
    Apart(
        HAGMIL,
        ("validate::key_metric::val_loss::highest",),
        "probabilities of a softmax need no bound",
        TRAIN,
    ),
    Apart(
        BY_LOSS,
        ("validate::evaluator::metric_cmp_fn", "best_model::mode", "early_stop::mode"),
        "the lowest loss chooses the epoch",
        TRAIN,
    ),
    Apart(GUIDANCE, ("best_model::paper_rule_trainer",), "the authors' rule is an option", TRAIN),
    Apart(
        (*ASMIL, *GUIDANCE),
        ("checkpointer::objects::early_stop",),
        "every epoch is run, as published",
        TRAIN,
    ),
    Apart(ASMIL, ("run",), "every epoch is run, as published", TRAIN),
    Apart(GUIDANCE, ("run",), "every epoch is run, as published; batches may be larger than the data", TRAIN),
    Apart(
        ASMIL,
        (
            "validate::handlers::@attention_stability",
            "best_model::anchor",
            "checkpointer::objects::anchor",
            "checkpointer::objects::attention_stability",
        ),
        "the anchor",
        TRAIN,
    ),
    # What is written.
    Apart(INSIGHT, ("operating_points::outputs",), "one output for two classes", ("evaluate", "inference")),
    Apart(GUIDANCE, ("operating_points::outputs",), "one output", ("evaluate", "inference")),
    Apart(GUIDANCE, ("prediction_saver::multi_label",), "one label", ("evaluate", "inference")),
    Apart(
        GUIDANCE,
        tuple(f"slice_saver::{key}" for key in ("multi_label", "key", "class_index", "threshold", "min_threshold")),
        "a slice has a score, no map",
        ("evaluate", "inference"),
    ),
    Apart(CT, ("validate::handlers::@slice_report_saver",), "slices", ("evaluate",)),
    Apart(CT, ("validate::handlers::@slice_saver",), "slices", ("evaluate", "inference")),
    Apart(CT, ("run::$@slice_saver.raise_failures()",), "slices", ("inference",)),
    Apart(
        ("pathology_insight",),
        ("validate::handlers::@heatmap_saver", "run::$@heatmap_saver.raise_failures()"),
        "the map is the method's answer",
        ("inference",),
    ),
    Apart(
        HAGMIL,
        ("heatmap_saver::_target_",),
        "a map of every level",
        ("inference_heatmap",),
    ),
    Apart(
        ("ct_insight",),
        ("label_map::key", "label_map::threshold", "label_map::min_threshold"),
        "it decides by its heatmap and its own threshold",
        ("inference_monailabel",),
    ),
    Apart(
        ("ct_insight",),
        ("label_map::multi_label", "label_map::operating_points"),
        "it may have several labels",
        ("inference_monailabel",),
    ),
    Apart(("ct_insight",), ("slice_encoder::spatial",), "tokens", ("inference_scans",)),
    Apart(
        ("ct_insight",), _embed("EmbedScand", "lungs", "depth", "depth_mode"), "layers, of lungs", ("inference_scans",)
    ),
    Apart(("pathology_insight",), ("tile_encoder::spatial",), "tokens", ("inference_slides",)),
    Apart(("pathology_insight",), _embed("EmbedSlided", "_target_"), "tile by tile", ("inference_slides",)),
    Apart(HAGMIL, _embed("EmbedSlided", "_target_", "levels"), "level by level", ("inference_slides",)),
    Apart(
        ("pathology_insight", *HAGMIL),
        _embed("EmbedSlided", "network"),
        "the network answers while the slide is read",
        ("inference_slides",),
    ),
    # How heatmaps are evaluated.
    Apart(INSIGHT, ("map",), "its own map", ("localise",)),
    Apart(CT, ("dice_saver::_target_",), "voxels", ("localise",)),
    Apart(INSIGHT, ("validate::inferer",), "Grad-CAM of its tokens", ("grad_cam",)),
    Apart(
        HAGMIL,
        ("map", "localisation_saver::threshold", "localisation_saver::rescale"),
        "its fused map holds ranks",
        ("localise",),
    ),
    Apart(
        (*ASMIL, *HAGMIL),
        ("validate::handlers::@dice_saver", "run::$@dice_saver.raise_failures()"),
        "tiles, as the ASMIL paper",
        ("localise",),
    ),
    Apart(
        (*CT, "pathology_insight"),
        ("validate::handlers::@localisation_saver", "run::$@localisation_saver.raise_failures()"),
        "voxels, or pixels as the INSIGHT paper",
        ("localise",),
    ),
]


def _in(file: str, *bundles: str) -> tuple[str, ...]:
    return tuple(f"{bundle}/{file}" for bundle in bundles)


# Training and validation in one file; scope: bundles and files.
VALIDATE = ("validate",)
TRAINS = _in("train", *INSIGHT, *GUIDANCE, *BASELINES, *ASMIL, *HAGMIL)
STEPS = [
    Apart(VALIDATE, ("dataset::data",), "its own split", (*TRAINS, *_in("mnist_bags", *BASELINES))),
    Apart(VALIDATE, ("dataloader::shuffle", "dataloader::sampler"), "the order of cases does not matter", TRAINS),
    Apart(VALIDATE, ("dataloader::drop_last",), "every case counts", _in("train", *GUIDANCE)),
    Apart(VALIDATE, ("preprocessing::transforms::SampleInstancesd",), "every instance counts", _in("train", *SURVIVAL)),
    Apart(VALIDATE, ("inferer",), "logits are enough", _in("train", *WITH_METHODS)),
    Apart(VALIDATE, ("inferer",), "no anchor is needed", (*_in("train", *ASMIL), *_in("anchor", *BASELINES))),
    Apart(
        VALIDATE,
        ("postprocessing",),
        "the loss needs the network's whole output",
        (*TRAINS, *_in("survival", *SURVIVAL)),
    ),
    Apart(
        VALIDATE,
        ("key_metric",),
        "named after the step",
        (*TRAINS, *_in("survival", *SURVIVAL), *_in("slice_supervised", *GUIDANCE)),
    ),
    Apart(VALIDATE, ("handlers",), "training is followed otherwise", TRAINS),
    Apart(
        VALIDATE,
        ("sampler::even_divisible", "sampler::shuffle", "dataloader::sampler"),
        "every case counts once",
        _in("multi_gpu_train", *INSIGHT, *GUIDANCE, *BASELINES, *ASMIL, *HAGMIL),
    ),
]

# The anchor of pathology_asmil and that of mil_baselines/anchor.json.
ANCHOR = [
    Apart(
        BASELINES,
        ("loss::terms::bag", "loss::terms::method"),
        "beside the loss of the method of choice",
    ),
]
