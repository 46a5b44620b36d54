//! What shells offer: by the scripts that are installed, as each shell loads them.

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

#[test]
fn fish_and_zsh_offer_them_too() {
    let _vm = Vm::named("t-shells");
    banger(&["vm", "create", "--name", "t-shells", BUSYBOX]).ok();
    assert_eq!(
        run("fish", &["-c", "complete --do-complete 'banger start t-shel'"]).ok(),
        "t-shells\tcreated\n"
    );
    assert_eq!(run("fish", &["-c", "complete --do-complete 'banger stop t-shel'"]).ok(), "");
    // zsh completes only what is typed: at a terminal, where it echoes what it made of the line.
    let typed = r#"zmodload zsh/zpty
        zpty shell 'TERM=dumb zsh -f -i'
        zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u; echo re""ady'
        zpty -r shell line '*ready*'
        zpty -w -n shell $'banger start t-shel\t'
        zpty -r -m shell line '*t-shells*' && print offered"#;
    assert_eq!(run("timeout", &["30", "zsh", "-f", "-c", typed]).ok().trim(), "offered");
}
