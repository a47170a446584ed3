defmodule Beamr.CacheConfigTest do
  # The setting is the whole node's.
  use Beamr.Case, async: false

  test "config :beamr, cache_dir: is the cache unless another is given" do
    folder = Path.join(System.tmp_dir!(), "beamr-config-#{System.pid()}")

    on_exit(fn ->
      Application.delete_env(:beamr, :cache_dir)
      File.rm_rf!(folder)
    end)

    Application.put_env(:beamr, :cache_dir, folder)
    assert {:ok, _module} = Beamr.compile("(module)", cache: nil)
    refute File.exists?(folder)
    assert {:ok, _wasm} = Beamr.instantiate("(module)")
    assert [_entry] = File.ls!(folder)
    assert {:ok, _module} = Beamr.compile("(module)")
    assert [_entry] = File.ls!(folder)
  end
end
