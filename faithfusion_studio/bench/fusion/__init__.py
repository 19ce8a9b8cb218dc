"""What repair and distillation do to the splats, measured against exact truth from aside."""
