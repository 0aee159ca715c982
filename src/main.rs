//! The program: see [`waltrail::main`].

fn main() -> std::process::ExitCode {
    waltrail::main()
}
