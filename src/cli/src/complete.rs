//! Completion of `kubectl sandbox`: kubectl asks a program named `kubectl_complete-sandbox` with the words typed so
//! far, of which the last one is to be completed. It answers with a candidate a line and, last, what the shell may do
//! besides (cobra's `ShellCompDirective`). See KEP-2379, "Shell Completion Support".

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command, CommandFactory, ValueHint};

use crate::Cli;

/// The name under which kubectl asks.
const NAME: &str = "kubectl_complete-sandbox";

/// Whether this program was called to complete.
pub fn is_asked() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|program| Path::new(&program).file_stem() == Some(NAME.as_ref()))
}

/// Answers kubectl.
pub fn answer() {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    // Who asks may have gone.
    let _ = crate::term::print(&completed(&words));
}

/// What the shell may offer besides the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Besides {
    /// Names of files.
    Files = 0,
    Nothing = 4,
}

/// A word, and what it means.
type Candidate = (String, String);

fn completed(words: &[String]) -> String {
    let (word, before) = words
        .split_last()
        .map_or(("", words), |(word, before)| (word.as_str(), before));
    let mut tree = Cli::command();
    // Flags of all commands stand in each only then.
    tree.build();
    let (candidates, besides) = Place::after(&tree, before).candidates(word);
    let mut text = String::new();
    for (candidate, about) in candidates {
        let _ = match about.as_str() {
            "" => writeln!(text, "{candidate}"),
            about => writeln!(text, "{candidate}\t{about}"),
        };
    }
    let _ = writeln!(text, ":{}", besides as u8);
    text
}

/// Where a word stands on the command line.
struct Place<'a> {
    command: &'a Command,
    /// The flag whose value it is.
    flag: Option<&'a Arg>,
    /// Arguments without a flag before it.
    arguments: usize,
    /// Whether it comes after `--`: a word of the sandbox's command.
    of_the_sandbox: bool,
}

impl<'a> Place<'a> {
    fn after(tree: &'a Command, words: &[String]) -> Self {
        let mut place = Self {
            command: tree,
            flag: None,
            arguments: 0,
            of_the_sandbox: false,
        };
        for word in words {
            place.pass(word);
        }
        place
    }

    fn pass(&mut self, word: &str) {
        if self.flag.take().is_some() || self.of_the_sandbox {
            return;
        }
        if word == "--" {
            self.of_the_sandbox = true;
        } else if let Some(name) = word.strip_prefix("--") {
            self.flag = self.flag_named(name);
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            self.flag = self.flag_after(letters);
        } else if let Some(command) = self.command.find_subcommand(word) {
            self.command = command;
            self.arguments = 0;
        } else {
            self.arguments += 1;
        }
    }

    /// The flag of this name, if it takes a value.
    fn flag_named(&self, name: &str) -> Option<&'a Arg> {
        let mut flags = self.command.get_arguments();
        flags.find(|flag| flag.get_long() == Some(name) && takes_value(flag))
    }

    /// The flag whose value comes after these letters: `-fk` leaves the value of `-k` to the next word, `-kstep` does
    /// not.
    fn flag_after(&self, letters: &str) -> Option<&'a Arg> {
        let with_value = |letter: char| {
            let mut flags = self.command.get_arguments();
            flags.find(|flag| flag.get_short() == Some(letter) && takes_value(flag))
        };
        let mut found = letters
            .char_indices()
            .filter_map(|(at, letter)| Some((at + letter.len_utf8(), with_value(letter)?)));
        found
            .next()
            .filter(|(end, _)| *end == letters.len())
            .map(|(_, flag)| flag)
    }

    fn candidates(&self, word: &str) -> (Vec<Candidate>, Besides) {
        if let Some(flag) = self.flag {
            return values(flag, word);
        }
        if self.of_the_sandbox {
            return (Vec::new(), Besides::Nothing);
        }
        if let Some((name, begun)) = word.strip_prefix("--").and_then(|word| word.split_once('=')) {
            return self
                .flag_named(name)
                .map_or((Vec::new(), Besides::Nothing), |flag| values(flag, begun));
        }
        if word.starts_with('-') {
            return (self.flags(word), Besides::Nothing);
        }
        let (mut candidates, besides) = self
            .argument()
            .map_or((Vec::new(), Besides::Nothing), |argument| values(argument, word));
        candidates.extend(self.commands(word));
        (candidates, besides)
    }

    /// The argument without a flag that stands here; the last one may be given again and again.
    fn argument(&self) -> Option<&'a Arg> {
        let arguments: Vec<&Arg> = self.command.get_positionals().collect();
        let again = |argument: &&&Arg| argument.get_num_args().is_some_and(|many| many.max_values() > 1);
        let argument = arguments
            .get(self.arguments)
            .or_else(|| arguments.last().filter(again));
        argument.copied().filter(|argument| !argument.is_last_set())
    }

    fn commands(&self, begun: &str) -> Vec<Candidate> {
        let commands = self
            .command
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        commands
            .flat_map(|command| {
                let names = std::iter::once(command.get_name()).chain(command.get_visible_aliases());
                let about = command.get_about().map(ToString::to_string);
                names.map(move |name| candidate(name, about.as_deref()))
            })
            .filter(|(name, _)| name.starts_with(begun))
            .collect()
    }

    fn flags(&self, begun: &str) -> Vec<Candidate> {
        let flags = self.command.get_arguments().filter(|flag| !flag.is_hide_set());
        flags
            .flat_map(|flag| {
                let short = flag.get_short().map(|letter| format!("-{letter}"));
                let long = flag.get_long().map(|name| format!("--{name}"));
                let about = flag.get_help().map(ToString::to_string);
                let names = short.into_iter().chain(long);
                names.map(move |name| candidate(&name, about.as_deref()))
            })
            .filter(|(name, _)| name.starts_with(begun))
            .collect()
    }
}

fn takes_value(flag: &Arg) -> bool {
    flag.get_action().takes_values()
}

/// The values of an argument that begin so.
fn values(argument: &Arg, begun: &str) -> (Vec<Candidate>, Besides) {
    let values = argument.get_possible_values();
    let candidates = values
        .iter()
        .filter(|value| !value.is_hide_set() && value.get_name().starts_with(begun))
        .map(|value| {
            let about = value.get_help().map(ToString::to_string);
            candidate(value.get_name(), about.as_deref())
        })
        .collect();
    let besides = match argument.get_value_hint() {
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath => Besides::Files,
        _ => Besides::Nothing,
    };
    (candidates, besides)
}

/// A tab would end the word, and the first line says enough.
fn candidate(word: &str, about: Option<&str>) -> Candidate {
    let about = about.and_then(|about| about.lines().next()).unwrap_or_default();
    (word.to_owned(), about.replace('\t', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The candidates, without what they mean, and the last line.
    fn asked(words: &[&str]) -> (Vec<String>, String) {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let text = completed(&words);
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| line.split('\t').next().unwrap().to_owned())
            .collect();
        let directive = lines.pop().unwrap();
        (lines, directive)
    }

    #[test]
    fn what_fits_the_place_of_the_word_is_offered() {
        for (words, expected, directive) in [
            (&["ru"][..], &["run"][..], ":4"),
            (&["l"], &["list", "ls", "logs"], ":4"),
            (&["policy", ""], &["check", "help"], ":4"),
            (&["-n", "agents", "ver"], &["verify"], ":4"),
            (&["-n", ""], &[], ":4"),
            (&["get", "analyst", "--rec"], &["--records"], ":4"),
            // Flags of all commands, in each.
            (&["get", "--kube"], &["--kubeconfig"], ":4"),
            (&["get", "--kubeconfig", ""], &[], ":0"),
            (&["list", "-o", ""], &["json", "yaml", "wide", "name"], ":4"),
            (&["list", "--output=y"], &["yaml"], ":4"),
            (&["audit", "-fk", "ne"], &["network"], ":4"),
            (&["audit", "-fkstep", "--den"], &["--denied"], ":4"),
            (&["wait", "--for", "r"], &["ready"], ":4"),
            (&["completion", "ba"], &["bash"], ":4"),
            // A value is no command.
            (&["get", "-n", "list", "--rec"], &["--records"], ":4"),
            // Names of sandboxes are not asked for; files are the shell's to know.
            (&["verify", ""], &[], ":0"),
            (&["verify", "log", ""], &[], ":4"),
            (&["policy", "check", "a.yaml", ""], &[], ":0"),
            (&["cp", "a", ""], &[], ":0"),
            (&["exec", "tools", "--", "l"], &[], ":4"),
            (&["no-such", "x"], &[], ":4"),
            (&["get", "--no-such=x"], &[], ":4"),
        ] {
            let (candidates, last) = asked(words);
            assert_eq!(candidates, expected, "{words:?}");
            assert_eq!(last, directive, "{words:?}");
        }
    }

    #[test]
    fn without_a_word_every_command_is_offered_and_each_says_what_it_does() {
        for words in [&[][..], &[""]] {
            let (candidates, _) = asked(words);
            for command in Cli::command().get_subcommands() {
                assert!(
                    candidates.contains(&command.get_name().to_owned()),
                    "{candidates:?}"
                );
            }
        }
        let text = completed(&["stop".to_owned()]);
        let (word, about) = text.lines().next().unwrap().split_once('\t').unwrap();
        assert!(word == "stop" && !about.is_empty(), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn flags_are_offered_by_letter_and_by_name() {
        let (candidates, last) = asked(&["logs", "-"]);
        for flag in ["-f", "--follow", "-n", "--namespace", "-h", "--help"] {
            assert!(candidates.contains(&flag.to_owned()), "{flag}: {candidates:?}");
        }
        assert_eq!(last, ":4");
    }
}
