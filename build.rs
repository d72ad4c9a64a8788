//! Where `sampan-seal` knows the machine, its entry point comes before the C library's.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if machine == "x86_64" || machine == "aarch64" {
        println!("cargo:rustc-link-arg-bin=sampan=-Wl,--entry=sampan_entry");
    }
}
