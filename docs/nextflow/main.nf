// Converts slides with Nextflow (DSL 2), each as a task of its own:
//
//   nextflow run docs/nextflow/main.nf --slides 'scans/*.czi' --output out --options '--appmag 40'
//
// This file was written carefully and never run: Nextflow's launcher downloads itself from outside of the package
// registries that mimic is developed with. Slides of several files (DICOM folders, VSI, MRXS) need their companions in
// the task's folder as well; 'mimic batch' with a manifest and --shard is simpler for them.
nextflow.enable.dsl = 2

params.slides = 'slides/*'
params.output = 'out'
params.options = ''

process SVS {
    tag "${slide.baseName}"
    publishDir params.output, mode: 'copy'
    cpus 4
    memory '3 GB'
    // 6 is a tool that crashed, 9 a limit: worth a second try. Other codes say that the slide is not convertible.
    errorStrategy { task.exitStatus in [6, 9] && task.attempt == 1 ? 'retry' : 'ignore' }
    maxRetries 1

    input:
    path slide

    output:
    path "${slide.baseName}.svs"
    path "${slide.baseName}.json"

    script:
    """
    mimic convert '${slide}' -o '${slide.baseName}.svs' --report '${slide.baseName}.json' --quiet \\
        --threads ${task.cpus} ${params.options}
    """
}

workflow {
    Channel.fromPath(params.slides, checkIfExists: true) | SVS
}
