//! What shells offer: by the script that is installed, as bash loads it.

use banger_tests::{BUSYBOX, Vm, banger, run, sh};

#[test]
fn bash_offers_names_of_vms_by_what_they_are() {
    let _vm = Vm::named("t-complete");
    banger(&["vm", "create", "--name", "t-complete", BUSYBOX]).ok();
    let script = r#". /usr/share/bash-completion/bash_completion
        _completion_loader banger || [ $? = 124 ]
        offer() {
            COMP_WORDS=("$@") COMP_LINE="$*" COMP_CWORD=$(($# - 1))
            COMP_POINT=${#COMP_LINE} COMPREPLY=()
            $(complete -p banger | sed 's/.* -F \([^ ]*\) .*/\1/') banger "${!#}" "${@: -2:1}"
            echo "$* -> ${COMPREPLY[*]}"
        }
        offer banger start t-comp; offer banger stop t-comp; offer banger vm show t-comp"#;
    let wanted =
        "banger start t-comp -> t-complete\nbanger stop t-comp -> \nbanger vm show t-comp -> t-complete\n";
    assert_eq!(run("bash", &["-c", script]).ok(), wanted);
    // Nobody is asked for a password, and nothing is said.
    let line = "banger session attach t-complete ";
    let mallory =
        format!("runuser -u mallory -- env COMPLETE=bash _BANGER_LINE='{line}' banger -- {line} '' 2>&1");
    assert!(sh(&mallory).ok().starts_with("--"), "options alone");
}
