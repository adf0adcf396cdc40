# Starts a training on one GPU, several, or several machines; source it from the repository root.

# train_imagenet CONFIG DATA [NUM_GPUS] [FLAG...]: what every wsfvit_*_1k.sh does.
train_imagenet() { start_training imagenet "$@"; }

# train_detector CONFIG DATA [NUM_GPUS] [FLAG...]: what the scripts in scripts/detection do.
train_detector() { start_training detection "$@"; }

# train_video CONFIG MNIST [NUM_GPUS] [FLAG...]: what the scripts in scripts/video do.
train_video() { start_training video "$@"; }

# start_training imagenet|detection|video CONFIG DATA [NUM_GPUS] [FLAG...]
#
# The run folder is output/imagenet/NAME (output/detection/NAME, ...), and a second start continues what is there. Flags go
# to the command after ours, so they win. The global batch is the recipe's for any number of GPUs: gradients accumulate up
# to it; that of a video model is small, and divided by the processes.
start_training() {
    local task=$1 config=$2 name
    name=$(basename "$config" .yaml)
    shift 2
    if [ $# -eq 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
        print_usage "$task" "$name"
        [ $# -gt 0 ] && return 0 || return 2
    fi
    local data=$1 processes=1 command
    shift
    if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
        processes=$1
        shift
    fi
    if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]]; then
        echo "error: the number of GPUs is 1 or more, not '$processes'" >&2
        return 2
    fi
    case $task in
        imagenet) command=(train.py "$data" -c "$config") ;;
        detection) command=(-m wsfvit.detection train "$data" -c "$config") ;;
        video)
            local batch all=$((processes * ${NNODES:-1}))
            [ "${WSFVIT_SLURM_TASKS:-}" = 1 ] && all=$SLURM_NTASKS
            batch=$(sed -n 's/^global_batch_size: //p' "$config")
            command=(-m wsfvit.video train --mnist "$data" -c "$config" --batch-size $((batch / all)))
            ;;
    esac
    start_processes "$processes" "${command[@]}" --output "output/$task" --experiment "$name" --resume auto "$@"
}

# finetune_imagenet CONFIG START DATA [NUM_GPUS] [FLAG...]: starts from --initial-checkpoint, or else from the best weights
# of the run START in output/imagenet.
finetune_imagenet() {
    local config=$1 start="output/imagenet/$2/model_best.pth.tar"
    shift 2
    local initial=(--initial-checkpoint "$start")
    case " $* " in
        "  " | *" -h "* | *" --help "* | *" --initial-checkpoint"* | *" --dry-run "*) initial=() ;;
        *)
            if [ ! -f "$start" ]; then
                echo "error: nothing to fine-tune: '$start' does not exist; pass --initial-checkpoint FILE" >&2
                return 2
            fi
            ;;
    esac
    train_imagenet "$config" "$@" "${initial[@]}"
}

print_usage() {
    local data="ImageNet-1k" script="scripts/$2_1k.sh" command="train.py"
    local folders="train/ and validation/ (or val/), one folder per class in each"
    if [ "$1" != imagenet ]; then
        script="scripts/$1/$2.sh" command="-m wsfvit.$1 train"
    fi
    if [ "$1" = detection ]; then
        data="COCO" folders="train2017/, val2017/ and annotations/, as COCO comes"
    elif [ "$1" = video ]; then
        data="Moving MNIST" folders="MNIST's idx files, and mnist_test_seq.npy, which then is the test, if you have it"
    fi
    cat <<EOF
Trains $2 on $data by configs/$1/$2.yaml.

    bash $script DATA [NUM_GPUS] [FLAG...]

DATA is a folder with $folders.
NUM_GPUS is that of this machine (default 1). FLAGs win over the recipe (python $command --help).
Started again, it continues.

Variables: NNODES (machines, default 1), NODE_RANK (which of them this is, default 0), MASTER_ADDR (default localhost) and
MASTER_PORT (default 29500) of the first one, MAX_RESTARTS (how often torchrun starts dead processes again, default 0),
PYTHON (default: .venv's, else python3).
EOF
}

# start_processes N SCRIPT [ARG...], or N -m MODULE [ARG...]: one process for each of N GPUs on each of $NNODES machines.
# Inside a SLURM job step that has its own task per GPU (scripts/slurm/), this task is the process.
start_processes() {
    local processes=$1 nodes="${NNODES:-1}" python="${PYTHON:-}"
    shift
    if [ -z "$python" ]; then
        python=python3
        [ -x .venv/bin/python ] && python=.venv/bin/python
    fi
    export MASTER_ADDR="${MASTER_ADDR:-localhost}" MASTER_PORT="${MASTER_PORT:-29500}"
    if [ "${WSFVIT_SLURM_TASKS:-}" = 1 ]; then
        export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
        exec "$python" "$@"
    elif [ "$processes" -eq 1 ] && [ "$nodes" -eq 1 ]; then
        exec "$python" "$@"
    fi
    # A signal that asks for a last checkpoint must reach the processes; torchrun passes on those it knows.
    export TORCHELASTIC_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    # launch.py checks the command before it starts torchrun, and reports a mistake once.
    exec "$python" scripts/launch.py -m torch.distributed.run --nproc-per-node "$processes" --nnodes "$nodes" \
        --node-rank "${NODE_RANK:-0}" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
        --max-restarts "${MAX_RESTARTS:-0}" "$@"
}
