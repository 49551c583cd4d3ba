//! A VM process that stands still where it is told to: see `vmferry_tests::crash`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    vmferry_tests::crash::main()
}
