use kvm_bindings::*;
use kvm_ioctls::*;
fn rd() -> u64 { unsafe { core::arch::x86_64::_rdtsc() } }
#[test]
fn tsc() {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let v: Vec<_> = (0..2).map(|i| vm.create_vcpu(i).unwrap()).collect();
    let get = |i: usize| { let mut m = Msrs::from_entries(&[kvm_msr_entry{index:0x10,..Default::default()}]).unwrap(); v[i].get_msrs(&mut m).unwrap(); m.as_slice()[0].data };
    let set = |i: usize, d| { let m = Msrs::from_entries(&[kvm_msr_entry{index:0x10,data:d,..Default::default()}]).unwrap(); v[i].set_msrs(&m).unwrap() };
    println!("fresh: host {} v0 {} v1 {}", rd(), get(0), get(1));
    set(0, 1_000_000_000_000); set(1, 1_000_000_500_000);
    println!("set near: host {} v0 {} v1 {}", rd(), get(0), get(1));
    std::thread::sleep(std::time::Duration::from_millis(100));
    println!("later: host {} v0 {} v1 {}", rd(), get(0), get(1));
    let c = vm.get_clock().unwrap();
    println!("{c:?}");
    println!("tsc_khz {}", v[0].get_tsc_khz().unwrap());
    let l = kvm.get_msr_index_list().unwrap();
    println!("{} msrs: {:x?}", l.as_slice().len(), l.as_slice());
    let sup = kvm.get_supported_cpuid(256).unwrap();
    for e in sup.as_slice() { println!("{:x}.{:x} fl{:x} {:08x} {:08x} {:08x} {:08x}", e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx); }
}
