import json, os, resource, subprocess, sys
from pathlib import Path

def test_x(tiny):
    def used():
        one=resource.getrusage(resource.RUSAGE_CHILDREN); return one.ru_utime+one.ru_stime
    for w in ("0","2"):
        before=used()
        r=subprocess.run([sys.executable,"-m","cliptex","--log",f"logs/train/clip/seed{w}.log","--threads","1","train","--model","clip","--seed",w,"--workers",w,"--config",json.dumps(tiny.plain())],capture_output=True,text=True,env=os.environ|{"PYTHONPATH":"/tmp/fast/tests"})
        total=used()-before
        print(r.stderr[-500:]); assert r.returncode==0
        print("WORKERS",w,total, Path(f"results/timings/train/clip-seed{w}.json").read_text())
